-- The roles that servers act in. They belong to the whole cluster, so two Muster databases share
-- them; what each may do is granted in each database. Run by `muster migrate` and `muster restore`,
-- as often as one likes, also at the same time for two databases.
DO $$
DECLARE
    name text;
    may_act text := CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'muster_access', 'muster_keys', 'muster_users', 'muster_directory', 'muster_ingest',
        'muster_segments', 'muster_housekeeping', 'muster_backup'
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- Another database was just migrated.
            END;
        END IF;
        IF NOT pg_has_role(current_user, name, may_act) THEN
            BEGIN
                EXECUTE format('GRANT %I TO CURRENT_USER', name);
            EXCEPTION WHEN unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
END
$$;
