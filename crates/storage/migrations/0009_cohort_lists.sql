-- What lists of cohorts show and are ordered by.

ALTER TABLE cohort_version ADD COLUMN received_count bigint, ADD COLUMN matched_count bigint;
COMMENT ON COLUMN cohort_version.received_count IS 'Identifiers of its import; null if it was published before this was recorded.';
COMMENT ON COLUMN cohort_version.matched_count IS 'How many of them matched a user; null as received_count is.';
UPDATE cohort_version v
SET received_count = (i.summary ->> 'received')::bigint,
    matched_count = (i.summary ->> 'received')::bigint
        - (i.summary -> 'outcomes' ->> 'unknown')::bigint
        - (i.summary -> 'outcomes' ->> 'device_of_identified_user')::bigint
        - (i.summary -> 'outcomes' ->> 'invalid')::bigint
FROM cohort_import i
WHERE i.workspace_id = v.workspace_id AND i.import_id = v.import_id AND i.version = v.version;

ALTER TABLE cohort ADD COLUMN member_count bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN cohort.member_count IS 'Live members when the current version was published: lists are ordered by it. Not indexed, so that publishing stays a heap-only update.';
UPDATE cohort c SET member_count = v.member_count
FROM cohort_version v
WHERE v.workspace_id = c.workspace_id AND v.cohort_id = c.cohort_id AND v.version = c.version;

CREATE INDEX cohort_list_index ON cohort (workspace_id, lower(name), cohort_id);
