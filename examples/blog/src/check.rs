//! The rules of input that several services have in common. What is refused is refused with `INVALID_ARGUMENT`.

use std::ops::RangeInclusive;

use tonic::Status;

/// Posts or subscriptions a page when the caller names no number.
pub const PAGE: i32 = 10;
/// The most a page holds.
pub const LARGEST_PAGE: i32 = 50;

/// A text of one line whose length is in `length`, counted in characters.
///
/// # Errors
/// When it is blank, too short, too long, or holds a control character.
pub fn line(field: &str, text: &str, length: RangeInclusive<usize>) -> Result<(), Status> {
    if text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!("{field} must be one line")));
    }
    prose(field, text, length)
}

/// A text of any number of lines whose length is in `length`, counted in characters.
///
/// # Errors
/// When it is blank, too short or too long.
pub fn prose(field: &str, text: &str, length: RangeInclusive<usize>) -> Result<(), Status> {
    if text.trim().is_empty() {
        return Err(Status::invalid_argument(format!("{field} must not be blank")));
    }
    if !length.contains(&text.chars().count()) {
        let (least, most) = length.into_inner();
        return Err(Status::invalid_argument(format!(
            "{field} must have {least} to {most} characters"
        )));
    }
    Ok(())
}

/// One page of a list that is ordered by a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// How many rows it holds at most.
    pub size: u16,
    /// The number of the last row seen; `None` for the first page.
    pub after: Option<i64>,
}

impl Page {
    /// Reads what the caller asked for; a size of 0 is the usual one, a larger one than allowed is the largest.
    ///
    /// # Errors
    /// When the size is negative or the token was never given out.
    pub fn new(size: i32, token: &str) -> Result<Self, Status> {
        let size = match size {
            0 => PAGE,
            size => size.min(LARGEST_PAGE),
        };
        let size = u16::try_from(size).map_err(|_| Status::invalid_argument("page_size must not be negative"))?;
        let after = match token {
            "" => None,
            token => match token.parse() {
                Ok(after) if after > 0 => Some(after),
                _ => return Err(Status::invalid_argument("page_token was not given out by this service")),
            },
        };
        Ok(Self { size, after })
    }

    /// Cuts `rows`, read with one row more than the page holds, and names the token of the next page if there is one.
    #[must_use]
    pub fn cut<T>(self, mut rows: Vec<(i64, T)>) -> (Vec<T>, String) {
        let size = usize::from(self.size);
        let more = rows.len() > size;
        rows.truncate(size);
        let token = rows
            .last()
            .filter(|_| more)
            .map(|(number, _)| number.to_string())
            .unwrap_or_default();
        (rows.into_iter().map(|(_, row)| row).collect(), token)
    }
}

#[cfg(test)]
mod tests {
    use super::{Page, line};

    #[test]
    fn a_page_is_bounded() {
        let size = |asked| Page::new(asked, "").map(|page| page.size).ok();
        assert_eq!(size(0), Some(10));
        assert_eq!(size(7), Some(7));
        assert_eq!(size(1_000), Some(50));
        assert_eq!(size(-1), None);
    }

    #[test]
    fn a_foreign_token_is_refused() {
        for token in ["x", "-1", "0", "1.5", "99999999999999999999"] {
            assert!(Page::new(0, token).is_err(), "{token}");
        }
    }

    #[test]
    fn only_a_page_that_has_a_next_one_has_a_token() {
        let page = Page { size: 2, after: None };
        assert_eq!(
            page.cut(vec![(9, 'a'), (7, 'b'), (4, 'c')]),
            (vec!['a', 'b'], "7".to_owned())
        );
        assert_eq!(page.cut(vec![(9, 'a'), (7, 'b')]), (vec!['a', 'b'], String::new()));
        assert_eq!(page.cut(Vec::<(i64, char)>::new()), (vec![], String::new()));
    }

    #[test]
    fn a_line_counts_characters_and_has_no_breaks() {
        assert!(line("title", "äöü", 1..=3).is_ok());
        assert!(line("title", "äöü!", 1..=3).is_err());
        assert!(line("title", "   ", 1..=3).is_err());
        assert!(line("title", "a\nb", 1..=3).is_err());
    }
}
