// Bytes and costs of a run, for docs/codecs.md; FEATHERFED (coefficients.js) comes from the code.
"use strict";

// Payload bytes up of one client in one round.
function bytesUp(codec, parameters, clients, budget) {
  const model = 4 * parameters;
  if (codec === "float32") return model + FEATHERFED.envelope;
  if (codec === "exact") return model * FEATHERFED.exactShare;
  const most = parameters / 8 + FEATHERFED.envelope; // a sketch has a bit a parameter at most
  if (codec === "budget") return Math.min(most, budget / clients);
  const preset = FEATHERFED.presets[codec];
  const ofFive = Math.max(model / preset.ratio, preset.floor);
  return Math.min(most, (ofFive * FEATHERFED.presetClients) / clients);
}

// Payload bytes down of one client in one round: the updates of all, or their mean if that is less.
function bytesDown(codec, parameters, clients, budget) {
  const model = 4 * parameters;
  if (codec === "float32") return model;
  const up = bytesUp(codec, parameters, clients, budget);
  const forwarded = FEATHERFED.bundle + clients * (up + FEATHERFED.part);
  return Math.min(forwarded, model * FEATHERFED.exactShare);
}

// What a run takes: bytes of one client and round, of one client and of all, with what is around.
function runBytes(codec, parameters, clients, rounds, budget) {
  const up = bytesUp(codec, parameters, clients, budget);
  const down = bytesDown(codec, parameters, clients, budget);
  const around = FEATHERFED.around;
  const upAll = rounds * (up + around.up) + around.connection;
  const downAll = rounds * (down + around.down) + around.connection;
  return { up, down, client: rounds * (up + down), clientWithAround: upAll + downAll,
           all: clients * (upAll + downAll) };
}

// Days that a client needs for `bytes` if it may send and receive `perDay` of them.
function daysFor(bytes, perDay) {
  return perDay > 0 ? bytes / perDay : null;
}

// Cost of `bytes` at a price for a megabyte (1,000,000 bytes).
function costOf(bytes, pricePerMegabyte) {
  return pricePerMegabyte > 0 ? (bytes / 1e6) * pricePerMegabyte : null;
}

function bytesText(bytes) {
  if (bytes < 10000) return `${Math.round(bytes).toLocaleString("en")} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
}

function showCalculator(place) {
  const links = ["LoRa", "NB-IoT", "4G"];
  const codecs = [...Object.keys(FEATHERFED.presets), "budget", "exact", "float32"];
  const number = (name, value, label) =>
    `<label>${label} <input type="number" min="0" step="any" name="${name}" value="${value}"></label><br>`;
  place.innerHTML =
    "<form>" +
    number("parameters", 225034, "Parameters that are trained") +
    number("clients", 5, "Clients in a round") +
    number("rounds", 7, "Rounds") +
    `<label>Codec <select name="codec">${codecs.map((c) => `<option>${c}</option>`).join("")}</select></label><br>` +
    number("budget", 4000, "Bytes of all clients in a round, for a budget") +
    "<table><thead><tr><th>Your link</th><th>Price of a MB</th><th>Bytes a day and client</th><th>Cost of the run</th>" +
    "<th>Days at least</th></tr></thead><tbody>" +
    links.map((link, i) =>
      `<tr><td>${link}</td><td><input type="number" min="0" step="any" name="price${i}"></td>` +
      `<td><input type="number" min="0" step="any" name="day${i}"></td>` +
      `<td data-cost="${i}"></td><td data-days="${i}"></td></tr>`).join("") +
    '</tbody></table><p data-result></p></form>';
  const form = place.querySelector("form");
  form.elements.codec.value = "balanced";
  const value = (name) => Number(form.elements[name].value);
  const update = () => {
    const codec = form.elements.codec.value;
    const bytes = runBytes(codec, value("parameters"), Math.max(1, value("clients")),
                           value("rounds"), value("budget"));
    const promise = FEATHERFED.presets[codec];
    form.querySelector("[data-result]").textContent =
      `A client sends ${bytesText(bytes.up)} and gets ${bytesText(bytes.down)} in a round; ` +
      `in the run ${bytesText(bytes.client)}, with all around it ${bytesText(bytes.clientWithAround)}. ` +
      `All clients together: ${bytesText(bytes.all)}.` +
      (promise ? ` It promises to lose ${promise.promise} points at most, and may send up to ` +
                 `${FEATHERFED.mostTimes} times more for that.` : "");
    links.forEach((_, i) => {
      const cost = costOf(bytes.all, value(`price${i}`));
      const days = daysFor(bytes.clientWithAround, value(`day${i}`));
      form.querySelector(`[data-cost="${i}"]`).textContent = cost === null ? "" : cost.toFixed(4);
      form.querySelector(`[data-days="${i}"]`).textContent = days === null ? "" : days.toFixed(2);
    });
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}

if (typeof document !== "undefined") showCalculator(document.getElementById("calculator"));
