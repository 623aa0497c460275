// Made by `make reference`: do not edit.
const FEATHERFED = {
  "presets": {
    "transparent": {
      "ratio": 315,
      "floor": 900,
      "promise": 0.3
    },
    "balanced": {
      "ratio": 1020,
      "floor": 400,
      "promise": 0.7
    },
    "extreme": {
      "ratio": 1545,
      "floor": 250,
      "promise": 1.5
    }
  },
  "presetClients": 5,
  "mostTimes": 16.0,
  "exactShare": 0.1431,
  "envelope": 21,
  "bundle": 29,
  "part": 10.0,
  "around": {
    "up": 252,
    "down": 298,
    "connection": 1000
  }
};
