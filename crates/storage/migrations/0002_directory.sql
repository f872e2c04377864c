-- The user directory of each workspace.

CREATE TABLE directory (
    workspace_id bigint CONSTRAINT directory_pkey PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 0,
    next_user_no bigint NOT NULL DEFAULT 0,
    CONSTRAINT directory_next_user_no_check CHECK (next_user_no BETWEEN 0 AND 4294967296)
);
COMMENT ON TABLE directory IS 'One row a workspace. A change of the directory locks it, so changes are ordered and epochs have no gaps.';
COMMENT ON COLUMN directory.epoch IS 'Counts committed changes of the directory.';
COMMENT ON COLUMN directory.next_user_no IS 'Number of the next user; numbers are dense and never reused.';

CREATE TABLE directory_user (
    workspace_id bigint NOT NULL,
    user_no bigint NOT NULL,
    state smallint NOT NULL DEFAULT 1,
    external_id text COLLATE "C",
    merged_into bigint,
    epoch bigint NOT NULL,
    identified_epoch bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT directory_user_pkey PRIMARY KEY (workspace_id, user_no),
    CONSTRAINT directory_user_state_check CHECK (
        (state = 1 AND merged_into IS NULL)
        OR (state = 2 AND merged_into IS NOT NULL AND external_id IS NULL)
        OR (state = 3 AND merged_into IS NULL AND external_id IS NULL)
    ),
    CONSTRAINT directory_user_identified_check CHECK (state <> 1 OR (external_id IS NULL) = (identified_epoch IS NULL))
);
CREATE INDEX directory_user_epoch_index ON directory_user (workspace_id, epoch);
CREATE INDEX directory_user_gone_index ON directory_user (workspace_id, epoch) WHERE state <> 1;
COMMENT ON TABLE directory_user IS 'A person or device; a merged or deleted one stays as a tombstone without identifiers.';
COMMENT ON COLUMN directory_user.state IS '1 live, 2 merged, 3 deleted.';
COMMENT ON COLUMN directory_user.external_id IS 'The external id that audiences print; null for an anonymous user.';
COMMENT ON COLUMN directory_user.merged_into IS 'The user it was merged into, which may have been merged further.';
COMMENT ON COLUMN directory_user.epoch IS 'Directory epoch of the last change.';
COMMENT ON COLUMN directory_user.identified_epoch IS 'Directory epoch in which the user became identified.';

CREATE TABLE user_identifier (
    workspace_id bigint NOT NULL,
    kind smallint NOT NULL,
    label text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    user_no bigint NOT NULL,
    epoch bigint NOT NULL,
    CONSTRAINT user_identifier_pkey PRIMARY KEY (workspace_id, kind, label, id)
);
CREATE INDEX user_identifier_user_index ON user_identifier (workspace_id, user_no);
COMMENT ON TABLE user_identifier IS 'Every identifier of every live user; after a merge those of the other user lead to the survivor.';
COMMENT ON COLUMN user_identifier.kind IS '1 external id, 2 alias, 3 device id.';
COMMENT ON COLUMN user_identifier.label IS 'Label of an alias; empty for the others.';
COMMENT ON COLUMN user_identifier.epoch IS 'Directory epoch of the last change.';
