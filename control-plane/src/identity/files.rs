//! Files of the authority: written whole or not at all, and read only when nobody else can.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// The format of the state directory that this version writes and reads.
pub(super) const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
/// Nothing of ours is as large; a wrong path should not fill the memory.
const LARGEST: u64 = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system says no.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Others can read a private key.
    #[error(
        "{path} holds a private key and has mode {mode:04o}, so others can read it; run: chmod 600 {}",
        quoted(path)
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Larger than anything that belongs there.
    #[error("{path} is larger than 1 MiB")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// A newer version wrote the directory.
    #[error(
        "{path} was written by a newer version: it has format {found}, and this one reads up to {FORMAT}; nothing was changed"
    )]
    Newer {
        /// The state directory.
        path: PathBuf,
        /// Its format.
        found: String,
    },
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+@%".contains(&b);
    if text.bytes().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    |source| FileError::Io { path, source }
}

/// Makes a directory that only its owner enters.
pub(super) fn make_private(directory: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(io_error(directory))
}

/// Refuses a state directory that a newer version wrote, before anything in it is opened; marks one
/// that has no mark yet.
///
/// # Errors
/// When it is newer, or cannot be read or made.
pub(super) fn check_format(state_dir: &Path) -> Result<(), FileError> {
    let path = state_dir.join(FORMAT_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found <= FORMAT => Ok(()),
            _ => Err(FileError::Newer {
                path: state_dir.to_owned(),
                found: text.trim().chars().take(20).collect(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_private(state_dir)?;
            write(&path, format!("{FORMAT}\n").as_bytes())
        }
        Err(error) => Err(io_error(&path)(error)),
    }
}

/// Replaces `path` with `bytes`, mode 0600: after a crash it is the old file or the new one.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let new = path.with_extension("new");
    let written = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().map_err(io_error(path))?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Makes renames and removals in `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), FileError> {
    let synced = File::open(directory).and_then(|d| d.sync_all());
    synced.map_err(io_error(directory))
}

/// Reads a file that may be public.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, FileError> {
    if fs::metadata(path).map_err(io_error(path))?.len() > LARGEST {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    let text = fs::read_to_string(path).map(Zeroizing::new);
    text.map_err(io_error(path))
}

/// Reads a private key, unless the group or others can read it too.
pub(super) fn read_key(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let metadata = fs::metadata(path).map_err(io_error(path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    // Writers count as well: whoever may replace the key needs not read it.
    if mode & 0o077 != 0 && metadata.is_file() {
        let path = path.to_owned();
        return Err(FileError::Exposed { path, mode });
    }
    tracing::trace!(path = %path.display(), uid = metadata.uid(), "reads a private key");
    read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_is_private() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("a.key");
        // A crash left its half of a file.
        fs::write(path.with_extension("new"), "half").expect("writes");
        write(&path, b"one").expect("writes");
        write(&path, b"two").expect("replaces");
        assert_eq!(&**read_key(&path).expect("reads"), "two");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(scratch.path()).expect("reads").count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_to_run() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("my key.pem");
        write(&path, b"key").expect("writes");
        for mode in [0o640, 0o604, 0o644, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("sets");
            let error = read_key(&path).expect_err("exposed").to_string();
            assert!(error.ends_with(&format!("chmod 600 '{}'", path.display())), "{error}");
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("sets");
        assert!(read_key(&path).is_ok());
    }

    #[test]
    fn a_directory_of_a_newer_version_is_left_alone() {
        let scratch = tempfile::tempdir().expect("scratch");
        let (state, mark) = (scratch.path().join("state"), scratch.path().join("state/format"));
        check_format(&state).expect("a new one");
        check_format(&state).expect("our own");
        for newer in ["2\n", "17\n", "next", ""] {
            fs::write(&mark, newer).expect("writes");
            let error = check_format(&state).expect_err("newer").to_string();
            assert!(error.contains("newer version"), "{error}");
            assert_eq!(fs::read_to_string(&mark).expect("reads"), newer);
        }
    }
}
