-- Row-level security: each transaction sees one workspace, that of the setting muster.workspace, or
-- none. Explicit predicates stay; this is what holds when one of them is missing. Roles are made
-- before any migration (src/roles/roles.sql), privileges granted after all (src/roles/privileges.sql).

CREATE PROCEDURE isolate(target regclass)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    -- Also for the owner, unless it is a superuser.
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    -- A setting that was used once in a session is empty afterwards, not null. Selected, it is read
    -- once a statement, not once a row.
    EXECUTE format(
        'CREATE POLICY workspace ON %s USING (workspace_id = (SELECT nullif(current_setting(''muster.workspace'', true), '''')::bigint))',
        target);
    -- Who acts in the role, not everybody that could.
    EXECUTE format('CREATE POLICY backup ON %s FOR SELECT TO muster_backup USING (current_user = ''muster_backup'')', target);
END
$$;
COMMENT ON PROCEDURE isolate IS 'Confines a table to one workspace a transaction; call it for every new table with a workspace_id.';

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT c.oid::regclass::text FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
        WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
          -- Looked up before the workspace is known; privileges protect them.
          AND c.relname NOT IN ('workspace', 'workspace_partner', 'credential')
        ORDER BY c.relname
    LOOP
        EXECUTE format('CALL isolate(%L)', name);
    END LOOP;

    -- Clean-ups go by age, through all workspaces.
    FOREACH name IN ARRAY ARRAY[
        'request_log', 'cohort', 'cohort_version', 'cohort_delta', 'cohort_checkpoint', 'cohort_import',
        'import_batch', 'import_rejected', 'resolution'
    ] LOOP
        EXECUTE format(
            'CREATE POLICY housekeeping ON %I TO muster_housekeeping USING (current_user = ''muster_housekeeping'')',
            name);
    END LOOP;
END
$$;

-- Keys makes workspaces, with their directories, and keeps and reads the trail of all of them.
CREATE POLICY founding ON directory FOR INSERT TO muster_keys WITH CHECK (true);
CREATE POLICY deployment ON audit_event TO muster_keys USING (true);
-- Who was refused belongs to no workspace yet.
CREATE POLICY refusals ON audit_event FOR INSERT TO muster_access WITH CHECK (true);
