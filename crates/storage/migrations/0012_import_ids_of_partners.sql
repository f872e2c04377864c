-- The id that a client chooses for an import is unique for its partner, no more for the workspace:
-- nobody learns from it what another partner does. As cohorts do, imports get an id of ours besides.

-- The owner of the tables is in no workspace.
ALTER TABLE cohort NO FORCE ROW LEVEL SECURITY;
ALTER TABLE cohort_import NO FORCE ROW LEVEL SECURITY;

ALTER TABLE cohort_import ADD COLUMN partner text COLLATE "C", ADD COLUMN partner_import_id text COLLATE "C";
UPDATE cohort_import i SET partner = c.partner, partner_import_id = i.import_id
FROM cohort c
WHERE c.workspace_id = i.workspace_id AND c.cohort_id = i.cohort_id;
ALTER TABLE cohort_import ALTER COLUMN partner SET NOT NULL, ALTER COLUMN partner_import_id SET NOT NULL;
ALTER TABLE cohort_import ADD CONSTRAINT cohort_import_partner_import_id_unique
    UNIQUE (workspace_id, partner_import_id, partner);

ALTER TABLE cohort FORCE ROW LEVEL SECURITY;
ALTER TABLE cohort_import FORCE ROW LEVEL SECURITY;

COMMENT ON COLUMN cohort_import.import_id IS 'Ours, a UUIDv7; of older imports what is now partner_import_id.';
COMMENT ON COLUMN cohort_import.partner IS 'That of the cohort.';
COMMENT ON COLUMN cohort_import.partner_import_id IS 'Chosen by the client; unique for the partner.';
COMMENT ON COLUMN cohort_version.import_id IS 'The partner_import_id of the import that published it.';
