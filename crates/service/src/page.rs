//! Page tokens: where the next page of a keyset begins, opaque to callers.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use muster_domain::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

/// Items on a page if the caller does not say.
pub const DEFAULT_PAGE_SIZE: i64 = 50;

/// Most items on a page.
pub const MAX_PAGE_SIZE: i64 = 1_000;

/// A page asked for: how many items, after which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<K> {
    /// Most items on it.
    pub size: i64,
    /// Key of the last item of the page before; `None` for the first page.
    pub after: Option<K>,
}

impl<K: Serialize + DeserializeOwned> Page<K> {
    /// Reads `page_size` and `page_token` of a list request.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the field.
    pub fn parse(size: i32, token: &str) -> Result<Self> {
        Self::parse_with(size, token, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    }

    /// As [`parse`](Self::parse), with other limits.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the field.
    pub fn parse_with(size: i32, token: &str, default: i64, max: i64) -> Result<Self> {
        let size = match i64::from(size) {
            0 => default,
            size if (1..=max).contains(&size) => size,
            _ => return Err(Error::field("page_size", format!("must be 1 to {max}"))),
        };
        let after = match token {
            "" => None,
            token => Some(
                decode(token)
                    .ok_or_else(|| Error::field("page_token", "is not one this list gave out"))?,
            ),
        };
        Ok(Self { size, after })
    }

    /// The rows to fetch: one more than the page holds, to see whether another page follows.
    pub fn limit(&self) -> i64 {
        self.size + 1
    }

    /// Cuts fetched rows to the page and says where the next one begins; empty if there is none.
    pub fn cut<T>(&self, rows: &mut Vec<T>, key: impl FnOnce(&T) -> K) -> String {
        let size = usize::try_from(self.size).expect("a page size is small and positive");
        if rows.len() <= size {
            return String::new();
        }
        rows.truncate(size);
        rows.last()
            .map(|last| encode(&key(last)))
            .unwrap_or_default()
    }
}

/// Writes an opaque token.
pub fn encode(key: &impl Serialize) -> String {
    let json = serde_json::to_vec(key).expect("keys are plain data");
    BASE64_URL_SAFE_NO_PAD.encode(json)
}

/// Reads an opaque token; `None` if it is not one of ours.
pub fn decode<K: DeserializeOwned>(token: &str) -> Option<K> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_token() {
        let page = Page::<u32>::parse(2, "").unwrap();
        let mut rows = vec![1, 2, 3];
        let token = page.cut(&mut rows, |row| *row);
        assert_eq!(rows, [1, 2]);
        assert_eq!(Page::<u32>::parse(2, &token).unwrap().after, Some(2));
        assert_eq!(page.cut(&mut vec![3], |row| *row), "");
    }

    #[test]
    fn bad_tokens_and_sizes_name_their_field() {
        for token in ["!", "e30", "bnVsbA"] {
            let error = Page::<u32>::parse(0, token).unwrap_err();
            assert_eq!(error.fields[0].field, "page_token");
        }
        assert!(Page::<u32>::parse(-1, "").is_err());
        assert!(Page::<u32>::parse(1_001, "").is_err());
    }
}
