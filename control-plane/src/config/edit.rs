//! Small edits of mesh.yaml: everything else stays as it was written, with its comments, order and spacing.
//!
//! An edit is made in the text, at the positions that the tree knows, and then proven: the new text must read as the old
//! one does, but for the edit. What cannot be edited so (an alias, an unusual layout) is refused and left to a person.

use std::ops::Range;

use super::tree::{self, Kind, Node, Scalar};

/// What to change in one service's document.
#[derive(Debug, Clone, Copy)]
pub enum Edit<'a> {
    /// Puts an entry into a list, in place of the one with its name where there is one.
    Put {
        /// The list's key, for example `faults`.
        list: &'a str,
        /// The entry's `name`.
        name: &'a str,
        /// The entry, as a YAML flow map on one line.
        entry: &'a str,
    },
    /// Takes an entry out of a list; the list goes with its last entry.
    Remove {
        /// The list's key.
        list: &'a str,
        /// The entry's `name`.
        name: &'a str,
    },
    /// Gives a key of an entry another value.
    Set {
        /// The list's key.
        list: &'a str,
        /// The entry's `name`.
        name: &'a str,
        /// The key in the entry.
        key: &'a str,
        /// Its value, as YAML on one line.
        value: &'a str,
    },
}

/// Why a text was not edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The text has no document there, or it is not one that can be read.
    #[error("no document begins on line {0}")]
    NoDocument(usize),
    /// The list has no such entry.
    #[error("`{list}` has no entry `{name}`")]
    NoEntry {
        /// The list's key.
        list: String,
        /// The name asked for.
        name: String,
    },
    /// The edit would have changed something else, too.
    #[error("the document is laid out in a way that cannot be edited safely; edit `{0}` by hand")]
    ByHand(String),
}

/// Edits the document that begins on `line` (from 1; [`super::Location`]) of `text`.
///
/// # Errors
/// When the edit cannot be made without changing something else.
pub fn edit(text: &str, line: usize, edit: Edit<'_>) -> Result<String, EditError> {
    let (documents, malformed) = tree::read(text);
    let at = documents.iter().position(|node| node.span.line == line);
    let (Some(at), None) = (at, malformed) else {
        return Err(EditError::NoDocument(line));
    };
    let by_hand = || EditError::ByHand(edit.list().to_owned());
    let mut expected = documents;
    let document = expected.get_mut(at).ok_or(EditError::NoDocument(line))?;
    let (place, new) = Text(text).change(document, edit)?.ok_or_else(by_hand)?;
    let before = text.get(..place.start).ok_or_else(by_hand)?;
    let behind = text.get(place.end..).ok_or_else(by_hand)?;
    let edited = [before, &new, behind].concat();
    intend(document, edit).ok_or_else(by_hand)?;
    let (read, malformed) = tree::read(&edited);
    let alike = read.len() == expected.len() && read.iter().zip(&expected).all(|(a, b)| same(a, b));
    if malformed.is_some() || !alike {
        return Err(by_hand());
    }
    Ok(edited)
}

impl<'a> Edit<'a> {
    fn list(self) -> &'a str {
        match self {
            Self::Put { list, .. } | Self::Remove { list, .. } | Self::Set { list, .. } => list,
        }
    }
}

/// A place in a text and what is to stand there.
type Change = (Range<usize>, String);

/// A text that is edited.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl Text<'_> {
    fn change(self, document: &Node, edit: Edit<'_>) -> Result<Option<Change>, EditError> {
        let list = document.get(edit.list());
        let find = |name: &str| {
            let found = list.and_then(|list| position(list, name));
            found.ok_or_else(|| EditError::NoEntry {
                list: edit.list().to_owned(),
                name: name.to_owned(),
            })
        };
        Ok(match edit {
            Edit::Put {
                list: key, name, entry, ..
            } => match list.map(|list| (list, items(list), position(list, name))) {
                None if self.is_flow(document) => self.insert(document, &format!("{key}: [{entry}]")),
                None => {
                    let item = format!("{key}:{}{}- {entry}", self.line_break(), indent(document));
                    self.insert(document, &item)
                }
                Some((_, items, Some(i))) => items.get(i).map(|item| (self.range(item), entry.to_owned())),
                Some((list, [], None)) => self.replace(document, key, list, &format!("[{entry}]")),
                Some((list, [.., last], None)) if self.is_flow(list) => {
                    let end = self.range(last).end;
                    Some((end..end, format!(", {entry}")))
                }
                Some((_, [.., last], None)) => self.dash(last).map(|(_, white)| {
                    let end = self.line_end(self.range(last).end);
                    (end..end, format!("{}{white}- {entry}", self.line_break()))
                }),
            },
            Edit::Remove { list: key, name } => {
                let i = find(name)?;
                let items = list.map(items).unwrap_or_default();
                match (list, items) {
                    (Some(list), [_]) => self.remove_key(document, key, list),
                    (Some(list), _) if self.is_flow(list) => {
                        let ranges: Vec<_> = items.iter().map(|item| self.range(item)).collect();
                        between(&ranges, i).map(|range| (range, String::new()))
                    }
                    _ => items.get(i).and_then(|item| {
                        let (dash, _) = self.dash(item)?;
                        Some((self.lines(dash..self.range(item).end), String::new()))
                    }),
                }
            }
            Edit::Set { name, key, value, .. } => {
                let i = find(name)?;
                let entry = list.map(items).unwrap_or_default().get(i);
                entry.and_then(|entry| match entry.get(key) {
                    None => self.insert(entry, &format!("{key}: {value}")),
                    Some(old) => self.replace(entry, key, old, value),
                })
            }
        })
    }

    /// `what` behind the last entry of a map.
    fn insert(self, map: &Node, what: &str) -> Option<Change> {
        let Kind::Map(entries) = &map.kind else { return None };
        entries.last()?;
        let end = self.inner_end(map);
        if self.is_flow(map) {
            return Some((end..end, format!(", {what}")));
        }
        let end = self.line_end(end);
        Some((end..end, format!("{}{}{what}", self.line_break(), indent(map))))
    }

    /// Another value of a key that is there.
    fn replace(self, map: &Node, key: &str, old: &Node, new: &str) -> Option<Change> {
        let (key, _) = map.entry(key)?;
        let colon = self.0.get(key.span.bytes.end..)?.find(':')? + key.span.bytes.end + 1;
        let old = match old.is_null() && self.0.get(old.span.bytes.clone())?.trim().is_empty() {
            true => colon..colon,
            false => self.range(old),
        };
        let between = self.0.get(colon..old.start)?;
        Some(match between.contains('\n') || between.is_empty() {
            true => (colon..old.end, format!(" {new}")),
            false => (old, new.to_owned()),
        })
    }

    fn remove_key(self, map: &Node, key: &str, value: &Node) -> Option<Change> {
        let Kind::Map(entries) = &map.kind else { return None };
        if self.is_flow(map) {
            let ranges: Vec<_> = entries
                .iter()
                .map(|(key, value)| key.span.bytes.start..self.range(value).end)
                .collect();
            let i = entries.iter().position(|(k, _)| k.text == key)?;
            return between(&ranges, i).map(|range| (range, String::new()));
        }
        let (key, _) = map.entry(key)?;
        Some((self.lines(key.span.bytes.start..self.range(value).end), String::new()))
    }

    /// Where a value stands, without what only follows it.
    fn range(self, node: &Node) -> Range<usize> {
        let bytes = node.span.bytes.clone();
        match &node.kind {
            Kind::Scalar(..) => {
                let written = self.0.get(bytes.clone()).unwrap_or_default().trim_end().len();
                bytes.start..bytes.start + written
            }
            _ if self.is_flow(node) => bytes,
            _ => bytes.start..self.inner_end(node),
        }
    }

    /// The end of the last value in a collection.
    fn inner_end(self, node: &Node) -> usize {
        match &node.kind {
            Kind::Scalar(..) => self.range(node).end,
            Kind::List(items) => items.last().map_or(node.span.bytes.end, |item| self.range(item).end),
            Kind::Map(entries) => entries.last().map_or(node.span.bytes.end, |(key, value)| {
                // Where nothing is written behind a key, the parser says the place of what comes next.
                match self
                    .0
                    .get(value.span.bytes.clone())
                    .unwrap_or_default()
                    .trim()
                    .is_empty()
                {
                    true => key.span.bytes.end + 1,
                    false => self.range(value).end,
                }
            }),
        }
    }

    fn is_flow(self, node: &Node) -> bool {
        // A list that is not indented is said to begin with its first item, which may be a flow map.
        if items(node)
            .first()
            .is_some_and(|first| first.span.bytes.start == node.span.bytes.start)
        {
            return false;
        }
        let rest = self.0.get(node.span.bytes.start..).unwrap_or_default();
        rest.starts_with(['[', '{'])
    }

    /// The `-` before an item, and the white space before that.
    fn dash(self, item: &Node) -> Option<(usize, String)> {
        let before = self.0.get(..item.span.bytes.start)?.trim_end_matches(' ');
        let dash = before.strip_suffix('-')?.len();
        let line = before.get(self.line_start(dash)..dash)?;
        line.chars().all(|c| c == ' ').then(|| (dash, line.to_owned()))
    }

    /// The whole lines of a range, with the line break behind them.
    fn lines(self, range: Range<usize>) -> Range<usize> {
        let start = self.line_start(range.start);
        let end = self.0.len().min(
            self.0
                .get(range.end..)
                .and_then(|rest| rest.find('\n'))
                .map_or(self.0.len(), |at| range.end + at + 1),
        );
        start..end
    }

    fn line_start(self, at: usize) -> usize {
        self.0
            .get(..at)
            .and_then(|before| before.rfind('\n'))
            .map_or(0, |found| found + 1)
    }

    /// Before the line break, or the end of the text.
    fn line_end(self, at: usize) -> usize {
        let rest = self.0.get(at..).unwrap_or_default();
        let line = rest.split('\n').next().unwrap_or_default();
        at + line.strip_suffix('\r').unwrap_or(line).len()
    }

    fn line_break(self) -> &'static str {
        if self.0.contains("\r\n") { "\r\n" } else { "\n" }
    }
}

/// White space before the keys of a map.
fn indent(map: &Node) -> String {
    " ".repeat(map.keys().next().map_or(0, |key| key.span.column.saturating_sub(1)))
}

fn items(list: &Node) -> &[Node] {
    match &list.kind {
        Kind::List(items) => items,
        _ => &[],
    }
}

fn position(list: &Node, name: &str) -> Option<usize> {
    items(list).iter().position(|item| {
        let said = item.get("name").map(|said| &said.kind);
        matches!(said, Some(Kind::Scalar(text, _)) if text == name)
    })
}

/// The range of the one at `i` with one of the commas beside it.
fn between(ranges: &[Range<usize>], i: usize) -> Option<Range<usize>> {
    let own = ranges.get(i)?;
    match (
        ranges.get(i + 1),
        i.checked_sub(1).and_then(|before| ranges.get(before)),
    ) {
        (Some(next), _) => Some(own.start..next.start),
        (None, Some(before)) => Some(before.end..own.end),
        (None, None) => Some(own.clone()),
    }
}

/// Does to the tree what is to happen to the text.
fn intend(document: &mut Node, edit: Edit<'_>) -> Option<()> {
    let parse = |text: &str| {
        let (mut documents, malformed) = tree::read(text);
        match (documents.pop(), documents.is_empty(), malformed) {
            (Some(node), true, None) => Some(node),
            _ => None,
        }
    };
    let Kind::Map(entries) = &mut document.kind else {
        return None;
    };
    let at = entries.iter().position(|(key, _)| key.text == edit.list());
    match (edit, at) {
        (Edit::Put { list, entry, .. }, None) => {
            let Kind::Map(mut added) = parse(&format!("{list}: [{entry}]"))?.kind else {
                return None;
            };
            entries.append(&mut added);
        }
        (Edit::Put { name, entry, .. }, Some(at)) => {
            let (_, list) = entries.get_mut(at)?;
            let known = position(list, name);
            if list.is_null() {
                list.kind = Kind::List(Vec::new());
            }
            let Kind::List(items) = &mut list.kind else { return None };
            match known.and_then(|i| items.get_mut(i)) {
                Some(item) => *item = parse(entry)?,
                None => items.push(parse(entry)?),
            }
        }
        (Edit::Remove { name, .. }, Some(at)) => {
            let (_, list) = entries.get_mut(at)?;
            let i = position(list, name)?;
            let Kind::List(items) = &mut list.kind else { return None };
            items.remove(i);
            if items.is_empty() {
                entries.remove(at);
            }
        }
        (Edit::Set { name, key, value, .. }, Some(at)) => {
            let (_, list) = entries.get_mut(at)?;
            let i = position(list, name)?;
            let Kind::List(items) = &mut list.kind else { return None };
            let Kind::Map(entry) = &mut items.get_mut(i)?.kind else {
                return None;
            };
            match entry.iter_mut().find(|(k, _)| k.text == key) {
                Some((_, old)) => *old = parse(value)?,
                None => {
                    let Kind::Map(mut added) = parse(&format!("{key}: {value}"))?.kind else {
                        return None;
                    };
                    entry.append(&mut added);
                }
            }
        }
        (Edit::Remove { .. } | Edit::Set { .. }, None) => return None,
    }
    Some(())
}

/// Whether two values say the same.
fn same(one: &Node, other: &Node) -> bool {
    match (&one.kind, &other.kind) {
        (Kind::Scalar(a, meant), Kind::Scalar(b, other_meant)) => {
            a == b && (meant == other_meant || matches!((meant, other_meant), (Scalar::Float, Scalar::Float)))
        }
        (Kind::List(a), Kind::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Kind::Map(a), Kind::Map(b)) => {
            let alike = |((k, a), (l, b)): (&(tree::Key, Node), &(tree::Key, Node))| k.text == l.text && same(a, b);
            a.len() == b.len() && a.iter().zip(b).all(alike)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
