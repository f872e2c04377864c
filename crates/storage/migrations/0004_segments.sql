-- Segments and their kept resolutions.

CREATE TABLE segment (
    workspace_id bigint NOT NULL,
    segment_id uuid NOT NULL,
    name text NOT NULL,
    filter jsonb NOT NULL,
    revision bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    archived_at timestamptz,
    CONSTRAINT segment_pkey PRIMARY KEY (workspace_id, segment_id)
);
CREATE UNIQUE INDEX segment_name_unique ON segment (workspace_id, name) WHERE archived_at IS NULL;
COMMENT ON TABLE segment IS 'A saved filter over cohorts.';
COMMENT ON COLUMN segment.filter IS 'The tree, with the ids of cohorts and segments.';
COMMENT ON COLUMN segment.revision IS 'Counts changes: the etag.';

CREATE TABLE segment_cohort (
    workspace_id bigint NOT NULL,
    segment_id uuid NOT NULL,
    cohort_id uuid NOT NULL,
    CONSTRAINT segment_cohort_pkey PRIMARY KEY (workspace_id, segment_id, cohort_id),
    CONSTRAINT segment_cohort_segment_fkey FOREIGN KEY (workspace_id, segment_id) REFERENCES segment (workspace_id, segment_id),
    CONSTRAINT segment_cohort_cohort_fkey FOREIGN KEY (workspace_id, cohort_id) REFERENCES cohort (workspace_id, cohort_id)
);
CREATE INDEX segment_cohort_cohort_index ON segment_cohort (workspace_id, cohort_id);
COMMENT ON TABLE segment_cohort IS 'Which segments name which cohorts; kept beside the filter so that use can be found.';

CREATE TABLE segment_segment (
    workspace_id bigint NOT NULL,
    segment_id uuid NOT NULL,
    used_segment_id uuid NOT NULL,
    CONSTRAINT segment_segment_pkey PRIMARY KEY (workspace_id, segment_id, used_segment_id),
    CONSTRAINT segment_segment_segment_fkey FOREIGN KEY (workspace_id, segment_id) REFERENCES segment (workspace_id, segment_id),
    CONSTRAINT segment_segment_used_fkey FOREIGN KEY (workspace_id, used_segment_id) REFERENCES segment (workspace_id, segment_id)
);
CREATE INDEX segment_segment_used_index ON segment_segment (workspace_id, used_segment_id);
COMMENT ON TABLE segment_segment IS 'Which segments name which segments.';

CREATE TABLE resolution (
    workspace_id bigint NOT NULL,
    resolution_id uuid NOT NULL,
    segment_id uuid,
    filter_text text NOT NULL,
    user_count bigint NOT NULL,
    directory_epoch bigint NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT resolution_pkey PRIMARY KEY (workspace_id, resolution_id)
);
CREATE INDEX resolution_segment_index ON resolution (workspace_id, segment_id, resolution_id);
CREATE INDEX resolution_expires_index ON resolution (expires_at);
COMMENT ON TABLE resolution IS 'A segment or filter evaluated at one snapshot, kept to be resumed, audited and compared.';
COMMENT ON COLUMN resolution.resolution_id IS 'UUIDv7, so that ids sort by creation.';
COMMENT ON COLUMN resolution.filter_text IS 'The filter as people read it, as it was.';

CREATE TABLE resolution_cohort (
    workspace_id bigint NOT NULL,
    resolution_id uuid NOT NULL,
    cohort_id uuid NOT NULL,
    partner text COLLATE "C" NOT NULL,
    partner_cohort_id text COLLATE "C" NOT NULL,
    name text NOT NULL,
    version bigint NOT NULL,
    published_at timestamptz,
    CONSTRAINT resolution_cohort_pkey PRIMARY KEY (workspace_id, resolution_id, cohort_id),
    CONSTRAINT resolution_cohort_resolution_fkey FOREIGN KEY (workspace_id, resolution_id) REFERENCES resolution (workspace_id, resolution_id) ON DELETE CASCADE
);
COMMENT ON TABLE resolution_cohort IS 'The cohort versions a resolution read.';

CREATE TABLE resolution_part (
    workspace_id bigint NOT NULL,
    resolution_id uuid NOT NULL,
    part integer NOT NULL,
    members bytea NOT NULL,
    CONSTRAINT resolution_part_pkey PRIMARY KEY (workspace_id, resolution_id, part),
    CONSTRAINT resolution_part_resolution_fkey FOREIGN KEY (workspace_id, resolution_id) REFERENCES resolution (workspace_id, resolution_id) ON DELETE CASCADE
);
ALTER TABLE resolution_part ALTER COLUMN members SET STORAGE EXTERNAL;
COMMENT ON TABLE resolution_part IS 'The audience, as Roaring bitmaps of user_no by part (user_no >> 23).';
