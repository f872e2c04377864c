//! What lies where in a data directory, and the lock on it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::account::Account;
use crate::log::Log;
use crate::programs::parse_major;

/// What Postgres calls its socket; the number is the port, and means nothing else here.
pub(crate) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The longest path of a Unix socket, in bytes without the final NUL (`sun_path`).
const MAX_SOCKET_PATH: usize = 107;

/// The places in a data directory. All paths are canonical.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) directory: PathBuf,
    /// The cluster itself.
    pub(crate) data: PathBuf,
    /// The directory of the Unix socket.
    pub(crate) socket: PathBuf,
    pub(crate) log: Log,
    /// A name of our own for the cluster, the same at each start. Postgres shows it
    /// in the titles of its processes.
    pub(crate) name: String,
}

impl Layout {
    /// Finds the places in `directory`, which is created if missing.
    pub(crate) fn create(directory: &Path) -> Result<Self, Error> {
        if !directory.exists() {
            // Others may pass through to what is theirs, and see no names.
            DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(directory)
                .map_err(Error::io("create", directory))?;
        }
        let directory = directory
            .canonicalize()
            .map_err(Error::io("resolve", directory))?;
        let name = format!(
            "muster-{:016x}",
            fnv1a(directory.as_os_str().as_encoded_bytes())
        );
        let inside = directory.join("run");
        let fits = inside.join(SOCKET_NAME).as_os_str().len() <= MAX_SOCKET_PATH;
        Ok(Self {
            data: directory.join("postgres"),
            socket: if fits {
                inside
            } else {
                Path::new("/tmp").join(&name)
            },
            log: Log::new(directory.join("postgres.log")),
            name,
            directory,
        })
    }

    /// Takes the directory for us; it is ours until the file is closed.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        let path = self.directory.join("muster.lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o644)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::InUse {
                    directory: self.directory.clone(),
                    pid: fs::read_to_string(&path)
                        .ok()
                        .and_then(|pid| pid.trim().parse().ok()),
                });
            }
            Err(TryLockError::Error(cause)) => return Err(Error::io("lock", &path)(cause)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(Error::io("write", &path))?;
        Ok(file)
    }

    /// The major version of the cluster; `None` if there is no cluster yet.
    pub(crate) fn cluster_major(&self, account: &Account) -> Result<Option<u32>, Error> {
        let metadata = match self.data.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("look at", &self.data)(error)),
        };
        let is_empty =
            || fs::read_dir(&self.data).is_ok_and(|mut entries| entries.next().is_none());
        if metadata.is_dir() && is_empty() {
            return Ok(None);
        }
        if metadata.uid() != account.uid {
            return Err(Error::ForeignOwner {
                directory: self.data.clone(),
                owner: metadata.uid(),
                account: account.name.clone(),
            });
        }
        fs::read_to_string(self.data.join("PG_VERSION"))
            .ok()
            .and_then(|version| parse_major(&version))
            .map(Some)
            .ok_or_else(|| Error::NotACluster {
                directory: self.data.clone(),
            })
    }

    /// Makes the directory of the socket. It lets in only the account that Postgres
    /// runs as (and root), which is why connections need no password.
    pub(crate) fn create_socket_directory(&self, account: &Account) -> Result<(), Error> {
        create_private(&self.socket, account)?;
        // A killed postmaster leaves its socket; its number may be another program's by now.
        for name in [SOCKET_NAME.to_owned(), format!("{SOCKET_NAME}.lock")] {
            let path = self.socket.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A URL for `database` that sqlx and libpq both read. The user is a parameter
    /// because a URL with a user must also have a host, and a socket has none.
    pub(crate) fn url(&self, database: &str) -> String {
        format!(
            "postgres:///{}?host={}&port=5432&user=muster&sslmode=disable",
            percent_encoded(database.as_bytes()),
            percent_encoded(self.socket.as_os_str().as_encoded_bytes()),
        )
    }
}

/// Makes a directory that only `account` may enter, or checks that it is one.
///
/// The place may be shared with everyone (`/tmp`): an existing directory counts only
/// if it is no link, closed to others, and owned by the account or by ourselves.
pub(crate) fn create_private(path: &Path, account: &Account) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = path
                .symlink_metadata()
                .map_err(Error::io("look at", path))?;
            let owned =
                found.uid() == account.uid || found.uid() == nix::unistd::geteuid().as_raw();
            if !found.is_dir() || !owned || found.mode() & 0o077 != 0 {
                return Err(Error::UnsafeSocketDirectory {
                    directory: path.to_owned(),
                    account: account.name.clone(),
                });
            }
        }
        Err(error) => return Err(Error::io("create", path)(error)),
    }
    // The umask may have taken away even the owner's permissions.
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(Error::io("change the mode of", path))?;
    account.own(path)
}

/// Everything but letters, digits and `-._~` is escaped.
fn percent_encoded(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// A hash that stays the same over compiler versions, unlike the standard library's.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_escapes_the_socket_directory_and_the_database() {
        let mut layout = Layout::create(&std::env::temp_dir()).unwrap();
        layout.socket = "/var/lib/my data/run".into();
        assert_eq!(
            layout.url("a/b"),
            "postgres:///a%2Fb?host=%2Fvar%2Flib%2Fmy%20data%2Frun\
             &port=5432&user=muster&sslmode=disable"
        );
    }

    #[test]
    fn a_long_path_gets_a_short_socket_directory() {
        let temporary = tempfile::tempdir().unwrap();
        let layout = Layout::create(temporary.path()).unwrap();
        assert_eq!(layout.socket, layout.directory.join("run"));
        let long = temporary.path().join("x".repeat(100));
        let layout = Layout::create(&long).unwrap();
        assert!(layout.socket.starts_with("/tmp/"));
        assert!(layout.socket.join(SOCKET_NAME).as_os_str().len() <= MAX_SOCKET_PATH);
    }

    #[test]
    fn a_private_directory_is_refused_unless_it_is_private() {
        let temporary = tempfile::tempdir().unwrap();
        let account = Account::choose().unwrap();
        let path = temporary.path().join("socket");
        create_private(&path, &account).unwrap();
        create_private(&path, &account).unwrap();

        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let error = create_private(&path, &account).unwrap_err();
        assert!(matches!(error, Error::UnsafeSocketDirectory { .. }));

        let link = temporary.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        let error = create_private(&link, &account).unwrap_err();
        assert!(matches!(error, Error::UnsafeSocketDirectory { .. }));
    }

    #[test]
    fn a_directory_is_locked_once() {
        let temporary = tempfile::tempdir().unwrap();
        let layout = Layout::create(temporary.path()).unwrap();
        let held = layout.lock().unwrap();
        let own = Some(std::process::id());
        assert!(matches!(layout.lock(), Err(Error::InUse { pid, .. }) if pid == own));
        drop(held);
        layout.lock().unwrap();
    }

    #[test]
    fn a_directory_with_something_else_in_it_is_no_cluster() {
        let temporary = tempfile::tempdir().unwrap();
        let account = Account::choose().unwrap();
        let layout = Layout::create(temporary.path()).unwrap();
        assert_eq!(layout.cluster_major(&account).unwrap(), None);
        fs::create_dir(&layout.data).unwrap();
        assert_eq!(layout.cluster_major(&account).unwrap(), None);
        fs::write(layout.data.join("notes"), "").unwrap();
        account.own(&layout.data).unwrap();
        let error = layout.cluster_major(&account).unwrap_err();
        assert!(matches!(error, Error::NotACluster { .. }));
    }
}
