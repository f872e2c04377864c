//! Lists come in pages; commands want them whole.

use crate::error::{CliError, Result};

/// Items asked for at once: the largest page the contract allows.
const PAGE_SIZE: usize = 1_000;

/// How much of a list to print.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Limit {
    /// Stop after this many [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl Limit {
    /// No limit.
    pub(crate) const NONE: Self = Self { limit: None };

    /// Fetches page after page until the list or the limit ends. `fetch` gets a page size and a page
    /// token and returns items and the token of the next page, empty on the last.
    pub(crate) async fn collect<T>(
        self,
        mut fetch: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String)>,
    ) -> Result<Vec<T>> {
        let limit = self.limit.map_or(usize::MAX, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        });
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let size = PAGE_SIZE.min(limit - all.len());
            let size = i32::try_from(size).unwrap_or(i32::MAX);
            let (items, next) = fetch(size, token.clone()).await?;
            all.extend(items);
            if next.is_empty() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
            token = advance(&token, next)?;
        }
    }
}

/// The next page token; a server that repeats one would otherwise be asked for ever.
///
/// # Errors
/// If it is the same as the last.
pub(crate) fn advance(last: &str, next: String) -> Result<String> {
    if next == last {
        let text = "the server answered with the same page twice";
        return Err(CliError::Failed(text.to_owned()));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn numbers(limit: Option<u64>) -> (Vec<usize>, Vec<i32>) {
        let mut sizes = Vec::new();
        let list = Limit { limit }
            .collect(async |size, token: String| {
                sizes.push(size);
                let start: usize = token.parse().unwrap_or(0);
                let end = (start + size as usize).min(2_500);
                let next = if end < 2_500 {
                    end.to_string()
                } else {
                    String::new()
                };
                Ok(((start..end).collect(), next))
            })
            .await
            .unwrap();
        (list, sizes)
    }

    #[tokio::test]
    async fn all_pages_are_fetched_and_a_limit_asks_for_no_more() {
        assert_eq!(numbers(None).await, ((0..2_500).collect(), vec![1_000; 3]));
        let limited = numbers(Some(1_200)).await;
        assert_eq!(limited, ((0..1_200).collect(), vec![1_000, 200]));
    }

    #[tokio::test]
    async fn a_repeated_page_token_is_an_error() {
        let endless = Limit::NONE
            .collect(async |_, _| Ok((vec![0], "same".to_owned())))
            .await;
        assert!(endless.is_err());
    }
}
