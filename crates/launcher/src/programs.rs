//! Finds `initdb` and `postgres`, in matching versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// The oldest supported major version.
pub(crate) const MINIMUM_MAJOR: u32 = 15;

/// Where Debian and Ubuntu put each major version: `<here>/15/bin`.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The programs of one installed version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Programs {
    directory: PathBuf,
    major: u32,
}

impl Programs {
    /// Chooses the programs to use.
    ///
    /// A given directory is the only one looked at. `cluster` is the directory and
    /// major version of an existing cluster: nothing else may open it.
    pub(crate) fn find(given: Option<&Path>, cluster: Option<(&Path, u32)>) -> Result<Self, Error> {
        let directories = match given {
            Some(directory) => vec![directory.to_owned()],
            None => usual_directories(),
        };
        let installed: Vec<_> = directories.iter().filter_map(|d| Self::at(d)).collect();
        choose(installed, cluster)?.ok_or_else(|| Error::NotInstalled {
            searched: for_people(&directories),
        })
    }

    pub(crate) fn initdb(&self) -> PathBuf {
        self.directory.join("initdb")
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.directory.join("postgres")
    }

    /// The programs in `directory`, if it has both and they run.
    fn at(directory: &Path) -> Option<Self> {
        if !directory.join("initdb").is_file() {
            return None;
        }
        // A `postgres` on the PATH may be a single link; what it links to has company.
        let real = directory.join("postgres").canonicalize().ok()?;
        let directory = match real.parent() {
            Some(parent) if parent.join("initdb").is_file() => parent.to_owned(),
            _ => directory.to_owned(),
        };
        let output = Command::new(directory.join("postgres"))
            .arg("--version")
            .output()
            .ok()?;
        let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { directory, major })
    }
}

/// Finds a client program for a server: an older one refuses to dump it, a newer one may write what
/// it does not understand, so the version closest from above is taken.
pub(crate) fn client_program(
    name: &str,
    given: Option<&Path>,
    server: u32,
) -> Result<PathBuf, Error> {
    let directories = match given {
        Some(directory) => vec![directory.to_owned()],
        None => usual_directories(),
    };
    let found = directories.iter().filter_map(|directory| {
        let program = directory.join(name);
        let output = Command::new(&program).arg("--version").output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
        (major >= server).then_some((major, program))
    });
    let closest = found.min_by_key(|(major, _)| *major);
    closest
        .map(|(_, program)| program)
        .ok_or_else(|| Error::ToolNotInstalled {
            name: name.to_owned(),
            server,
            searched: for_people(&directories),
        })
}

fn for_people(directories: &[PathBuf]) -> String {
    let directories: Vec<_> = directories
        .iter()
        .map(|directory| directory.display().to_string())
        .collect();
    directories.join(", ")
}

/// The PATH, what `pg_config` says, and Debian's directories from the newest down.
fn usual_directories() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        let text = String::from_utf8_lossy(&output.stdout);
        directories.push(PathBuf::from(text.trim()));
    }
    let mut majors: Vec<u32> = fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    directories.extend(
        majors
            .iter()
            .map(|major| format!("{DEBIAN}/{major}/bin").into()),
    );
    // A relative entry would mean something else in each working directory.
    directories.retain(|directory| directory.is_absolute());
    directories
}

/// The version of the cluster if there is one, else the first that is new enough.
fn choose(
    installed: Vec<Programs>,
    cluster: Option<(&Path, u32)>,
) -> Result<Option<Programs>, Error> {
    let newest = installed
        .iter()
        .max_by_key(|programs| programs.major)
        .cloned();
    let chosen = installed
        .into_iter()
        .filter(|programs| programs.major >= MINIMUM_MAJOR)
        .find(|programs| cluster.is_none_or(|(_, major)| programs.major == major));
    match (chosen, newest, cluster) {
        (Some(chosen), _, _) => Ok(Some(chosen)),
        (None, None, _) => Ok(None),
        (None, Some(newest), _) if newest.major < MINIMUM_MAJOR => Err(Error::TooOld {
            found: newest.major,
            directory: newest.directory,
        }),
        (None, Some(newest), Some((directory, major))) => Err(Error::VersionMismatch {
            cluster: major,
            found: newest.major,
            directory: directory.to_owned(),
        }),
        (None, Some(_), None) => unreachable!("a new enough version fits a new cluster"),
    }
}

/// The major version in `postgres (PostgreSQL) 15.14 (Debian …)` or in a `PG_VERSION` file.
pub(crate) fn parse_major(text: &str) -> Option<u32> {
    let version = match text.split_once("(PostgreSQL)") {
        Some((_, version)) => version.trim_start(),
        None => text.trim_start(),
    };
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(majors: &[u32]) -> Vec<Programs> {
        majors
            .iter()
            .map(|&major| Programs {
                directory: format!("/pg/{major}").into(),
                major,
            })
            .collect()
    }

    fn chosen(majors: &[u32], cluster: Option<u32>) -> Result<Option<u32>, Error> {
        let cluster = cluster.map(|major| (Path::new("/data"), major));
        Ok(choose(installed(majors), cluster)?.map(|programs| programs.major))
    }

    #[test]
    fn versions_are_read() {
        let debian = "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n";
        assert_eq!(parse_major(debian), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("16\n"), Some(16));
        assert_eq!(parse_major("something else"), None);
    }

    #[test]
    fn a_new_cluster_takes_the_first_that_is_new_enough() {
        assert_eq!(chosen(&[14, 15, 17], None).unwrap(), Some(15));
        assert_eq!(chosen(&[], None).unwrap(), None);
        let error = chosen(&[13, 14], None).unwrap_err();
        assert!(matches!(error, Error::TooOld { found: 14, .. }));
    }

    #[test]
    fn an_existing_cluster_takes_its_own_version() {
        assert_eq!(chosen(&[17, 15, 16], Some(16)).unwrap(), Some(16));
        let error = chosen(&[17, 15], Some(16)).unwrap_err();
        assert!(matches!(
            error,
            Error::VersionMismatch {
                cluster: 16,
                found: 17,
                ..
            }
        ));
    }

    #[test]
    fn a_client_program_is_of_the_servers_version_or_newer() {
        let program = client_program("pg_dump", None, MINIMUM_MAJOR).unwrap();
        assert_eq!(program.file_name().unwrap(), "pg_dump");
        let error = client_program("pg_dump", None, 9_999).unwrap_err();
        assert!(error.to_string().contains("postgresql-client"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        let error = client_program("pg_dump", Some(empty.path()), MINIMUM_MAJOR).unwrap_err();
        assert!(matches!(error, Error::ToolNotInstalled { .. }));
    }

    #[test]
    fn a_directory_needs_both_programs() {
        let directory = tempfile::tempdir().unwrap();
        let real = Programs::find(None, None).unwrap();
        std::os::unix::fs::symlink(real.initdb(), directory.path().join("initdb")).unwrap();
        assert_eq!(Programs::at(directory.path()), None);
        std::os::unix::fs::symlink(real.postgres(), directory.path().join("postgres")).unwrap();
        assert_eq!(Programs::at(directory.path()), Some(real));
    }
}
