-- Cohorts as logs of versioned bitmaps, and the imports that write them.

CREATE TABLE cohort (
    workspace_id bigint NOT NULL,
    cohort_id uuid NOT NULL,
    partner text COLLATE "C" NOT NULL,
    partner_cohort_id text COLLATE "C" NOT NULL,
    name text NOT NULL,
    former_names text[] NOT NULL DEFAULT '{}',
    revision bigint NOT NULL DEFAULT 1,
    version bigint NOT NULL DEFAULT 0,
    checkpoint_version bigint NOT NULL DEFAULT 0,
    checkpoint_bytes bigint NOT NULL DEFAULT 0,
    delta_bytes bigint NOT NULL DEFAULT 0,
    applied_source_time timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    imported_at timestamptz,
    archived_at timestamptz,
    CONSTRAINT cohort_pkey PRIMARY KEY (workspace_id, cohort_id),
    CONSTRAINT cohort_partner_cohort_id_unique UNIQUE (workspace_id, partner, partner_cohort_id)
);
CREATE INDEX cohort_name_index ON cohort (workspace_id, partner, name);
COMMENT ON TABLE cohort IS 'A named set of users pushed by a partner.';
COMMENT ON COLUMN cohort.cohort_id IS 'UUIDv7, so that ids sort by creation.';
COMMENT ON COLUMN cohort.partner_cohort_id IS 'The partner''s id of the cohort.';
COMMENT ON COLUMN cohort.name IS 'Current name; the partner''s id until a name arrives.';
COMMENT ON COLUMN cohort.former_names IS 'Names it had before, newest first.';
COMMENT ON COLUMN cohort.revision IS 'Counts changes of name and state: the etag.';
COMMENT ON COLUMN cohort.version IS 'Version published last; 0 if none.';
COMMENT ON COLUMN cohort.checkpoint_version IS 'Version of the newest checkpoint; 0 if none.';
COMMENT ON COLUMN cohort.checkpoint_bytes IS 'Size of the newest checkpoint.';
COMMENT ON COLUMN cohort.delta_bytes IS 'Size of the deltas since the newest checkpoint.';
COMMENT ON COLUMN cohort.applied_source_time IS 'Latest source time of a published import.';

CREATE TABLE cohort_version (
    workspace_id bigint NOT NULL,
    cohort_id uuid NOT NULL,
    version bigint NOT NULL,
    import_id text COLLATE "C" NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now(),
    member_count bigint NOT NULL,
    added_count bigint NOT NULL,
    removed_count bigint NOT NULL,
    CONSTRAINT cohort_version_pkey PRIMARY KEY (workspace_id, cohort_id, version),
    CONSTRAINT cohort_version_cohort_fkey FOREIGN KEY (workspace_id, cohort_id) REFERENCES cohort (workspace_id, cohort_id)
);
COMMENT ON TABLE cohort_version IS 'The result of one committed import; versions count up by one.';
COMMENT ON COLUMN cohort_version.member_count IS 'Live members when it was published.';

CREATE TABLE cohort_delta (
    workspace_id bigint NOT NULL,
    cohort_id uuid NOT NULL,
    version bigint NOT NULL,
    part integer NOT NULL,
    added bytea NOT NULL,
    removed bytea NOT NULL,
    CONSTRAINT cohort_delta_pkey PRIMARY KEY (workspace_id, cohort_id, version, part),
    CONSTRAINT cohort_delta_version_fkey FOREIGN KEY (workspace_id, cohort_id, version) REFERENCES cohort_version (workspace_id, cohort_id, version)
);
-- Bitmaps are compact already: compressing them costs more than it saves.
ALTER TABLE cohort_delta ALTER COLUMN added SET STORAGE EXTERNAL, ALTER COLUMN removed SET STORAGE EXTERNAL;
COMMENT ON TABLE cohort_delta IS 'What a version changed, as Roaring bitmaps of user_no by part (user_no >> 23).';

CREATE TABLE cohort_checkpoint (
    workspace_id bigint NOT NULL,
    cohort_id uuid NOT NULL,
    version bigint NOT NULL,
    part integer NOT NULL,
    members bytea NOT NULL,
    CONSTRAINT cohort_checkpoint_pkey PRIMARY KEY (workspace_id, cohort_id, version, part),
    CONSTRAINT cohort_checkpoint_version_fkey FOREIGN KEY (workspace_id, cohort_id, version) REFERENCES cohort_version (workspace_id, cohort_id, version)
);
ALTER TABLE cohort_checkpoint ALTER COLUMN members SET STORAGE EXTERNAL;
COMMENT ON TABLE cohort_checkpoint IS 'All members at a version: the newest one and the deltas since give any later version.';

CREATE TABLE cohort_import (
    workspace_id bigint NOT NULL,
    import_id text COLLATE "C" NOT NULL,
    cohort_id uuid NOT NULL,
    mode smallint NOT NULL,
    state smallint NOT NULL DEFAULT 1,
    fence bigint NOT NULL DEFAULT 1,
    next_offset bigint NOT NULL DEFAULT 0,
    digest_state bytea NOT NULL,
    source_time timestamptz,
    refuse_if_older boolean NOT NULL,
    max_removed_fraction double precision,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    digest bytea,
    summary jsonb,
    version bigint,
    CONSTRAINT cohort_import_pkey PRIMARY KEY (workspace_id, import_id),
    CONSTRAINT cohort_import_cohort_fkey FOREIGN KEY (workspace_id, cohort_id) REFERENCES cohort (workspace_id, cohort_id),
    CONSTRAINT cohort_import_state_check CHECK (
        CASE state
            WHEN 1 THEN expires_at IS NOT NULL
            WHEN 2 THEN expires_at IS NOT NULL AND summary IS NOT NULL AND digest IS NOT NULL
            WHEN 3 THEN version IS NOT NULL AND summary IS NOT NULL AND digest IS NOT NULL
            ELSE state IN (4, 5)
        END
    )
);
CREATE INDEX cohort_import_created_index ON cohort_import (workspace_id, created_at, import_id);
CREATE INDEX cohort_import_cohort_index ON cohort_import (workspace_id, cohort_id, created_at, import_id);
CREATE INDEX cohort_import_updated_index ON cohort_import (updated_at) WHERE state IN (3, 4, 5);
CREATE INDEX cohort_import_expires_index ON cohort_import (expires_at) WHERE state IN (1, 2);
COMMENT ON TABLE cohort_import IS 'One upload into a cohort.';
COMMENT ON COLUMN cohort_import.mode IS '1 delta, 2 replace.';
COMMENT ON COLUMN cohort_import.state IS '1 open, 2 awaiting confirmation, 3 committed, 4 aborted, 5 expired.';
COMMENT ON COLUMN cohort_import.fence IS 'Counts openings: a writer holds the number it was given and loses the import to a later one.';
COMMENT ON COLUMN cohort_import.next_offset IS 'Identifiers durably received.';
COMMENT ON COLUMN cohort_import.digest_state IS 'SHA-256 over them, not yet finished; empty once no more batches are taken, as it may hold the end of the last identifier.';
COMMENT ON COLUMN cohort_import.summary IS 'What it did, or while it awaits confirmation would do.';
COMMENT ON COLUMN cohort_import.version IS 'Version it published.';

CREATE TABLE import_batch (
    workspace_id bigint NOT NULL,
    import_id text COLLATE "C" NOT NULL,
    first_offset bigint NOT NULL,
    identifier_count integer NOT NULL,
    runs bytea NOT NULL,
    unknown integer NOT NULL,
    device_of_identified_user integer NOT NULL,
    invalid integer NOT NULL,
    digest_state bytea NOT NULL,
    directory_epoch bigint NOT NULL,
    CONSTRAINT import_batch_pkey PRIMARY KEY (workspace_id, import_id, first_offset),
    CONSTRAINT import_batch_import_fkey FOREIGN KEY (workspace_id, import_id) REFERENCES cohort_import (workspace_id, import_id) ON DELETE CASCADE
);
ALTER TABLE import_batch ALTER COLUMN runs SET STORAGE EXTERNAL;
COMMENT ON TABLE import_batch IS 'Acknowledged batches of imports that are not finished, resolved to users.';
COMMENT ON COLUMN import_batch.runs IS 'Whom they matched: runs of equal effect with their bitmaps.';
COMMENT ON COLUMN import_batch.digest_state IS 'SHA-256 over the import up to the end of this batch, not yet finished.';
COMMENT ON COLUMN import_batch.directory_epoch IS 'Directory epoch before it was matched; what changed since is checked again.';

CREATE TABLE import_rejected (
    workspace_id bigint NOT NULL,
    import_id text COLLATE "C" NOT NULL,
    first_offset bigint NOT NULL,
    positions bigint[] NOT NULL,
    reasons smallint[] NOT NULL,
    effects smallint[] NOT NULL,
    kinds smallint[] NOT NULL,
    labels bytea[] NOT NULL,
    ids bytea[] NOT NULL,
    CONSTRAINT import_rejected_pkey PRIMARY KEY (workspace_id, import_id, first_offset),
    CONSTRAINT import_rejected_import_fkey FOREIGN KEY (workspace_id, import_id) REFERENCES cohort_import (workspace_id, import_id) ON DELETE CASCADE
);
COMMENT ON TABLE import_rejected IS 'Identifiers of a batch that had no effect, in parallel arrays by position.';
COMMENT ON COLUMN import_rejected.reasons IS '1 unknown, 2 device of an identified user, 3 invalid.';
COMMENT ON COLUMN import_rejected.ids IS 'As sent, in bytes since a malformed one may hold what text cannot; null once erased with its user.';
