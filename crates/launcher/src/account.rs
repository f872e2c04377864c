//! The operating system user Postgres runs as.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{User, getegid, geteuid};

use crate::Error;

/// The user Postgres runs as: ourselves, or someone unprivileged if we are root,
/// because Postgres refuses to run as root.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    gid: u32,
    /// Whether we are root and commands must change to this account.
    switch: bool,
}

impl Account {
    pub(crate) fn choose() -> Result<Self, Error> {
        let (uid, gid) = (geteuid(), getegid());
        if !uid.is_root() {
            return Ok(Self {
                name: format!("user id {uid}"),
                uid: uid.as_raw(),
                gid: gid.as_raw(),
                switch: false,
            });
        }
        let user = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .ok_or(Error::NoAccount)?;
        Ok(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            switch: true,
        })
    }

    /// A command that will run as this account, apart from our terminal's signals:
    /// Ctrl-C must reach us alone, so that we can stop things in order.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.process_group(0).env("LC_ALL", "C").env("TZ", "UTC");
        // PGDATA, PGPORT, PGOPTIONS … are meant for other clusters.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Hands `path`, which we created, to this account.
    pub(crate) fn own(&self, path: &Path) -> Result<(), Error> {
        if self.switch {
            lchown(path, Some(self.uid), Some(self.gid))
                .map_err(Error::io("change the owner of", path))?;
        }
        Ok(())
    }

    /// Checks that this account may enter `directory`, which must be canonical, and
    /// each one above.
    pub(crate) fn require_search(&self, directory: &Path) -> Result<(), Error> {
        if !self.switch {
            return Ok(()); // What we cannot reach fails by itself, with a clear text.
        }
        let mut from_root: Vec<_> = directory.ancestors().collect();
        from_root.reverse();
        for step in from_root {
            let metadata = step.metadata().map_err(Error::io("look at", step))?;
            if !self.may_search(&metadata) {
                return Err(Error::Unsearchable {
                    blocking: step.to_owned(),
                    account: self.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// The plain permission bits decide: the account gets no supplementary groups.
    fn may_search(&self, directory: &Metadata) -> bool {
        let searchable = if directory.uid() == self.uid {
            0o100
        } else if directory.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        directory.mode() & searchable != 0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_bits_of_the_first_matching_class_decide() {
        let directory = tempfile::tempdir().unwrap();
        let (own_uid, own_gid) = (geteuid().as_raw(), getegid().as_raw());
        let may = |mode, uid, gid| {
            std::fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
            let account = Account {
                name: "test".into(),
                uid,
                gid,
                switch: false,
            };
            account.may_search(&directory.path().metadata().unwrap())
        };
        assert!(may(0o700, own_uid, own_gid));
        assert!(!may(0o611, own_uid, own_gid));
        assert!(may(0o710, own_uid + 1, own_gid));
        assert!(!may(0o701, own_uid + 1, own_gid));
        assert!(may(0o701, own_uid + 1, own_gid + 1));
        assert!(!may(0o700, own_uid + 1, own_gid + 1));
    }
}
