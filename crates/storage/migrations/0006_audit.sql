-- The trail also says from where, and tells what was refused.

ALTER TABLE audit_event ADD COLUMN peer text, ADD COLUMN refusal text;
CREATE INDEX audit_event_actor_index ON audit_event (actor, event_id);
CREATE INDEX audit_event_resource_index ON audit_event (resource, event_id);
COMMENT ON TABLE audit_event IS 'Who changed what, written in the transaction of the change; only added to. No secrets, no identifiers of people.';
COMMENT ON COLUMN audit_event.peer IS 'Address that the call came from; null if it came from no network.';
COMMENT ON COLUMN audit_event.refusal IS 'Reason why it was not done; null if it was.';
COMMENT ON COLUMN cohort_import.digest_state IS 'SHA-256 over them, not yet finished, in whole blocks: it holds no end of an identifier. Empty once no more batches are taken.';
