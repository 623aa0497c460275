-- One database per run. Weights and residuals are little-endian float32 in manifest order.

CREATE TABLE IF NOT EXISTS run (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    name        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,          -- of the settings that must not change in mid-run
    started     REAL NOT NULL,          -- seconds since the epoch, as all times here
    secret      INTEGER NOT NULL,       -- seed of cohorts and slots
    state       TEXT NOT NULL           -- transitions.RunState as JSON
);
CREATE TABLE IF NOT EXISTS clients (
    client       TEXT PRIMARY KEY,
    session      INTEGER NOT NULL UNIQUE,
    num_examples INTEGER NOT NULL,
    stages       TEXT NOT NULL,         -- codec stages it knows, separated by spaces
    runtime      TEXT NOT NULL,
    joined       REAL NOT NULL,
    num_held_out INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS statistics ( -- of clients' features, where the task standardises
    client     TEXT PRIMARY KEY,
    statistics BLOB NOT NULL            -- pb.Statistics
);
CREATE TABLE IF NOT EXISTS scaling (    -- what follows from them, fixed when the first round opens
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    scaling BLOB NOT NULL               -- pb.Scaling
);
CREATE TABLE IF NOT EXISTS versions (
    version  INTEGER PRIMARY KEY,       -- 0 is the start, r the result of round r
    digest   BLOB NOT NULL,
    kind     TEXT NOT NULL,             -- of its payload: delta or bundle
    codec    TEXT NOT NULL,
    sparsity REAL NOT NULL,             -- of the mask its payload was made under
    payload  BLOB NOT NULL,             -- leads here from the version before; empty for 0
    levels   BLOB,                      -- importance of tensors, and of rows and columns
    profile  BLOB,
    scores   TEXT                       -- loss and metrics by name, JSON; NULL while unknown
);
CREATE TABLE IF NOT EXISTS model (      -- the newest version's weights, and the server's residual
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    version  INTEGER NOT NULL,
    weights  BLOB NOT NULL,
    residual BLOB
);
CREATE TABLE IF NOT EXISTS rounds (
    round  INTEGER PRIMARY KEY,
    opened REAL NOT NULL,
    closed REAL,
    cohort TEXT NOT NULL                -- JSON list of clients
);
CREATE TABLE IF NOT EXISTS updates (    -- the journal: a row is here before it is acknowledged
    round          INTEGER NOT NULL,
    client         TEXT NOT NULL,
    slot           INTEGER NOT NULL,
    codec          TEXT NOT NULL,
    num_examples   INTEGER NOT NULL,
    payload        BLOB,                -- dropped once the round is aggregated
    train_loss     REAL,
    prediction     TEXT,                -- this client's model's answer to the example, JSON
    scores         TEXT,                -- and its scores on the server's data set, JSON
    sums_before    BLOB,                -- float32 sums of tasks/scoring.py on its own held-out
    sums_after     BLOB,                -- examples: of the round's version and of its own model
    PRIMARY KEY (round, client)
);
CREATE TABLE IF NOT EXISTS arrivals (   -- when each was accepted; none in databases of older versions
    round  INTEGER NOT NULL,
    client TEXT NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (round, client)
);
CREATE TABLE IF NOT EXISTS evaluations ( -- of the final version, by clients on held-out examples
    version INTEGER NOT NULL,
    client  TEXT NOT NULL,
    sums    BLOB NOT NULL,              -- float32; empty if the client has no usable figures
    PRIMARY KEY (version, client)
);
CREATE TABLE IF NOT EXISTS ranges (     -- of the final model's values, on clients' examples
    version      INTEGER NOT NULL,
    client       TEXT NOT NULL,
    digest       BLOB NOT NULL,         -- SHA-256 of the .tflite that was measured
    ranges       BLOB NOT NULL,         -- float32 [tensors, 2]; empty if it could not be measured
    num_examples INTEGER NOT NULL,
    PRIMARY KEY (version, client)
);
CREATE TABLE IF NOT EXISTS file_evaluations ( -- of the final int8 file, on held-out examples
    version INTEGER NOT NULL,
    client  TEXT NOT NULL,
    digest  BLOB NOT NULL,              -- SHA-256 of the .tflite
    sums    BLOB NOT NULL,              -- as in evaluations
    PRIMARY KEY (version, client)
);
CREATE TABLE IF NOT EXISTS norms (      -- L2 norms of the updates; records.UpdateNorms says of what
    round     INTEGER NOT NULL,
    client    TEXT NOT NULL,
    whole     REAL NOT NULL,
    trainable REAL NOT NULL,
    state     REAL NOT NULL,
    PRIMARY KEY (round, client)
);
CREATE TABLE IF NOT EXISTS aggregations (
    round     INTEGER PRIMARY KEY,
    clip      REAL,                     -- the norm that updates were clipped to
    clipped   INTEGER,                  -- how many were; NULL under differential privacy
    left_out  TEXT NOT NULL,            -- clients whose updates did not count at all, JSON list
    next_clip REAL,                     -- the same for the next round, under differential privacy
    epsilon   REAL                      -- privacy spent so far
);
CREATE TABLE IF NOT EXISTS publications (   -- none in databases of older versions
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    repeated INTEGER NOT NULL           -- rounds published before this database was put in place
);
CREATE TABLE IF NOT EXISTS discarded (  -- rounds whose model was not adopted
    round  INTEGER PRIMARY KEY,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS noise (      -- that codecs left in a round's mean, where it can be told
    round         INTEGER PRIMARY KEY,
    noise_energy  REAL NOT NULL,        -- sums of squares of trainable tensors
    update_energy REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS byte_factors (  -- of runs by a preset, where the noise can be told
    round        INTEGER PRIMARY KEY,
    weight_noise REAL NOT NULL,         -- of the round, relative to the weights
    factor       REAL NOT NULL          -- times the preset's bytes, in the rounds after it
);
CREATE TABLE IF NOT EXISTS refused (
    round  INTEGER NOT NULL,
    client TEXT NOT NULL,               -- "(stranger)": a caller whose name is unknown
    reason TEXT NOT NULL,               -- pb.Reason by name
    count  INTEGER NOT NULL,
    detail TEXT NOT NULL,               -- of the last refusal
    first  REAL NOT NULL,
    last   REAL NOT NULL,
    PRIMARY KEY (round, client, reason)
);
CREATE TABLE IF NOT EXISTS counts (     -- counters that no other table gives, for Prometheus
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS plan (       -- the plan that clients got, for `featherfed check`
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    plan   BLOB NOT NULL,               -- pb.Plan
    seeded INTEGER NOT NULL             -- whether version 0 is what the plan's seed gives
);
CREATE TABLE IF NOT EXISTS settings (   -- of the last start, to export models and tell changes by
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    settings TEXT NOT NULL              -- settings.Settings as JSON, without addresses and limits
);
CREATE TABLE IF NOT EXISTS extensions ( -- the number of rounds was changed; none in most runs
    round  INTEGER PRIMARY KEY,         -- from this round on
    rounds INTEGER NOT NULL             -- the run has so many
);
CREATE TABLE IF NOT EXISTS controls (   -- what whoever runs the server decided; see controls.py
    name  TEXT PRIMARY KEY,             -- paused, planned (rounds)
    value INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS excluded (   -- clients that take no part any more
    client TEXT PRIMARY KEY,
    since  REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS ledger (
    round         INTEGER NOT NULL,     -- rounds + 1 is the delivery of the final model
    client        TEXT NOT NULL,
    direction     TEXT NOT NULL,        -- uplink or downlink
    kind          TEXT NOT NULL,        -- transfer, control, retry, release or release_retry
    payload_bytes INTEGER NOT NULL,
    message_bytes INTEGER NOT NULL,
    PRIMARY KEY (round, client, direction, kind)
);
CREATE TABLE IF NOT EXISTS uploads (    -- received parts of an update, until it is accepted or refused
    client        TEXT NOT NULL,
    at            INTEGER NOT NULL,     -- the byte of the payload at which this part begins
    round         INTEGER NOT NULL,
    digest        BLOB NOT NULL,        -- with `size`: which update it is a part of
    size          INTEGER NOT NULL,
    message_bytes INTEGER NOT NULL,     -- of the calls that carried it; in the ledger as retry
    data          BLOB NOT NULL,
    PRIMARY KEY (client, at)
);
CREATE TABLE IF NOT EXISTS downloads (  -- how much of a download was sent to a client
    client        TEXT NOT NULL,
    kind          TEXT NOT NULL,        -- transfer or release
    round         INTEGER NOT NULL,
    digest        BLOB NOT NULL,        -- of the message that describes the data
    payload_bytes INTEGER NOT NULL,     -- from the first byte on
    message_bytes INTEGER NOT NULL,     -- of the messages that carried them
    PRIMARY KEY (client, kind)
);
CREATE TABLE IF NOT EXISTS checksums (  -- of all other tables' rows, kept by triggers; see checksums.py
    part  INTEGER NOT NULL,             -- the rows' round or version, 0 where they have none
    name  TEXT NOT NULL,                -- their table
    value INTEGER NOT NULL,
    PRIMARY KEY (part, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS provenance ( -- of this file
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    database   TEXT NOT NULL,           -- its random name
    commits    INTEGER NOT NULL,        -- how many changed it; see commit_count.py
    featherfed TEXT NOT NULL            -- the package version that opened it last
);
