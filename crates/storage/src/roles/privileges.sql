-- What each role may do in this database, whole: `muster migrate` and `muster restore` take all
-- privileges away and grant these, in one transaction. The order is that of the migrations.
--
-- A row lock needs the right to change one column. Where a role may lock but not change, that is
-- a column on which nothing depends.

REVOKE ALL ON ALL TABLES IN SCHEMA public
FROM muster_access, muster_keys, muster_users, muster_directory, muster_ingest, muster_segments,
    muster_housekeeping, muster_backup;
-- A database that was made before PostgreSQL 15 lets everybody make tables.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public
TO muster_access, muster_keys, muster_users, muster_directory, muster_ingest, muster_segments,
    muster_housekeeping, muster_backup;

-- Each server makes sure that the schema is the one it knows.
GRANT SELECT ON _sqlx_migrations TO muster_keys, muster_users, muster_ingest, muster_segments;

-- Who calls, looked up before the workspace is known.
GRANT SELECT ON workspace, workspace_partner, credential TO muster_access;
GRANT UPDATE (last_used_at) ON credential TO muster_access;

-- Control tables. Only keys changes them; the others see no digest of a secret.
GRANT SELECT, INSERT ON workspace, partner TO muster_keys;
GRANT SELECT, INSERT, DELETE, UPDATE (enabled_at) ON workspace_partner TO muster_keys;
GRANT SELECT, INSERT, UPDATE (expires_at, revoked_at, replaced_by, allowed_addresses) ON credential TO muster_keys;
GRANT SELECT ON workspace, partner, workspace_partner TO muster_users, muster_ingest, muster_segments;
GRANT SELECT (credential_id, kind, workspace_id, partner, expires_at, revoked_at, allowed_addresses) ON credential
TO muster_users, muster_ingest, muster_segments;
GRANT UPDATE (enabled_at) ON workspace_partner TO muster_ingest; -- To lock.
GRANT UPDATE (last_used_at) ON credential TO muster_ingest; -- To lock.
GRANT UPDATE (created_at) ON workspace TO muster_segments; -- To lock.

-- The trail is only added to.
GRANT INSERT ON audit_event TO muster_access, muster_users, muster_ingest, muster_segments;
GRANT SELECT, INSERT ON audit_event TO muster_keys;
GRANT SELECT, INSERT, UPDATE (response) ON request_log TO muster_keys, muster_users, muster_ingest, muster_segments;

-- The directory.
GRANT INSERT ON directory TO muster_keys;
GRANT SELECT, UPDATE ON directory TO muster_users;
GRANT SELECT, INSERT, UPDATE ON directory_user TO muster_users;
GRANT SELECT, INSERT, UPDATE, DELETE ON user_identifier TO muster_users;
GRANT SELECT ON directory, directory_user, user_identifier TO muster_directory, muster_ingest, muster_segments;

-- Cohorts and imports.
GRANT SELECT, INSERT, UPDATE ON cohort, cohort_import TO muster_ingest;
GRANT SELECT, INSERT ON cohort_version, cohort_delta, cohort_checkpoint, import_rejected TO muster_ingest;
GRANT SELECT, INSERT, DELETE ON import_batch TO muster_ingest;
GRANT SELECT, UPDATE ON import_rejected TO muster_users; -- To erase.
GRANT SELECT ON cohort, cohort_version, cohort_delta, cohort_checkpoint, cohort_import, import_rejected TO muster_segments;
GRANT UPDATE (created_at) ON cohort TO muster_segments; -- To lock.

-- Segments and resolutions.
GRANT SELECT, INSERT, UPDATE ON segment TO muster_segments;
GRANT SELECT, INSERT, DELETE ON segment_cohort, segment_segment TO muster_segments;
GRANT SELECT, INSERT ON resolution, resolution_cohort, resolution_part TO muster_segments;
GRANT SELECT ON segment, segment_cohort TO muster_ingest; -- To refuse archiving what is used.

-- Clean-ups, which go by age and for all workspaces. Rows that depend on others go with them.
GRANT SELECT, INSERT, UPDATE ON clean_up TO muster_housekeeping;
GRANT SELECT, UPDATE (created_at), DELETE ON request_log TO muster_housekeeping;
GRANT SELECT, UPDATE (state, digest_state, updated_at, expires_at, summary), DELETE ON cohort_import TO muster_housekeeping;
GRANT SELECT (workspace_id, import_id, first_offset), DELETE ON import_batch, import_rejected TO muster_housekeeping;
GRANT SELECT, DELETE ON cohort_delta, cohort_checkpoint TO muster_housekeeping;
GRANT SELECT, UPDATE (imported_at) ON cohort TO muster_housekeeping;
GRANT SELECT, UPDATE (published_at) ON cohort_version TO muster_housekeeping;
GRANT SELECT, UPDATE (created_at, expires_at), DELETE ON resolution TO muster_housekeeping;
GRANT SELECT (credential_id, last_used_at), UPDATE (last_used_at) ON credential TO muster_housekeeping;

-- A backup reads everything and changes nothing.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO muster_backup;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO muster_backup;
