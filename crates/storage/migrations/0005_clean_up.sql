-- A clock that jumps must not clean up what is still needed.

CREATE TABLE clean_up (
    singleton boolean NOT NULL DEFAULT true CONSTRAINT clean_up_pkey PRIMARY KEY,
    seen_at timestamptz NOT NULL,
    paused_until timestamptz,
    jumped_from timestamptz,
    CONSTRAINT clean_up_singleton_check CHECK (singleton)
);
COMMENT ON TABLE clean_up IS 'One row: what the clean-ups of all servers know of the clock of the database.';
COMMENT ON COLUMN clean_up.seen_at IS 'What it said at the last pass of any clean-up.';
COMMENT ON COLUMN clean_up.paused_until IS 'Nothing is cleaned up before, because the clock has jumped.';
COMMENT ON COLUMN clean_up.jumped_from IS 'What the clock said before it jumped ahead, until it is believed again.';
