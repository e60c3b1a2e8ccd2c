//! Finds the first match without looking at those of other hosts and other paths.
//!
//! Matches are filed by host (one with several stands in several places), then by path: a trie of exact paths,
//! prefixes and templates; a list of those without; a list of regular expressions. What is left of each is compared.
//! Maps are std's: keys come from clients, so the hash is keyed (SipHash).

use std::borrow::Cow;
use std::collections::HashMap;

use super::compile::{Compiled, Path, Place};
use super::host::{Host, Pattern};
use super::{Asked, Found};
use crate::model::{FieldError, Match};
use crate::paths::{Ambiguous, Trie, normalise};

/// Matches by number, in document order.
#[derive(Debug, Default)]
pub(super) struct Index {
    matches: Vec<Compiled>,
    any: Bucket,
    named: HashMap<Box<str>, Bucket>,
    suffixes: HashMap<Box<str>, Bucket>,
    /// Whether any match looks at paths.
    paths: bool,
}

/// Matches of one host, ascending.
#[derive(Debug)]
struct Bucket {
    everywhere: Vec<u32>,
    paths: Trie<Vec<u32>>,
    regexes: Vec<u32>,
    /// The first that looks at paths.
    first_path: u32,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            everywhere: Vec::new(),
            paths: Trie::default(),
            regexes: Vec::new(),
            first_path: u32::MAX,
        }
    }
}

/// One look-up.
struct Search<'s, 'a> {
    matches: &'s [Compiled],
    asked: &'s Asked<'a>,
    path: Option<&'s str>,
    best: u32,
    /// The first that looks at paths, of the host's.
    first_path: u32,
}

impl Index {
    /// Of lists of matches; an empty one matches everything. An error names the list.
    pub(super) fn new<'m>(lists: impl Iterator<Item = &'m [Match]>) -> Result<Self, (usize, FieldError)> {
        let everything = [Match::default()];
        let mut index = Self::default();
        for (route, list) in lists.enumerate() {
            let list = if list.is_empty() { &everything } else { list };
            for (i, wanted) in list.iter().enumerate() {
                let made = Compiled::new(route, wanted).map_err(|e| (route, e.under(format!("matches[{i}]"))))?;
                index.add(made);
            }
        }
        Ok(index)
    }

    fn add(&mut self, (compiled, place): (Compiled, Place)) {
        let number = u32::try_from(self.matches.len()).unwrap_or(u32::MAX);
        self.paths |= !matches!(place.path, Path::Any);
        if place.hosts.is_empty() {
            self.any.add(number, &place.path);
        }
        for host in place.hosts {
            let bucket = match host {
                Pattern::Named(name) => self.named.entry(name),
                Pattern::Suffix(suffix) => self.suffixes.entry(suffix),
            };
            bucket.or_default().add(number, &place.path);
        }
        self.matches.push(compiled);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.matches.is_empty()
    }

    pub(super) fn find(&self, asked: &Asked<'_>) -> Result<Option<Found>, Ambiguous> {
        let path = self.path(asked);
        let mut search = Search {
            matches: &self.matches,
            asked,
            path: path.as_ref().ok().and_then(Option::as_deref),
            best: u32::MAX,
            first_path: u32::MAX,
        };
        search.through(&self.any);
        if !self.named.is_empty() || !self.suffixes.is_empty() {
            self.of_host(&mut search);
        }
        if let Err(why) = path
            && search.first_path < search.best
        {
            return Err(why);
        }
        let found = usize::try_from(search.best).ok().and_then(|i| self.matches.get(i));
        Ok(found.map(|found| Found {
            route: found.route,
            segments: found.segments,
        }))
    }

    fn of_host(&self, search: &mut Search<'_, '_>) {
        let Some(host) = search.asked.host.and_then(Host::read) else {
            return;
        };
        let mut through = |map: &HashMap<Box<str>, Bucket>, [name, whole]: [&str; 2]| {
            let ported = (whole.len() > name.len()).then_some(whole);
            for key in std::iter::once(name).chain(ported) {
                if let Some(bucket) = map.get(key) {
                    search.through(bucket);
                }
            }
        };
        if !self.named.is_empty() {
            through(&self.named, host.names());
        }
        if !self.suffixes.is_empty() {
            host.suffixes().for_each(|suffix| through(&self.suffixes, suffix));
        }
    }

    /// The path in normal form, when any match looks at it.
    fn path<'a>(&self, asked: &Asked<'a>) -> Result<Option<Cow<'a, str>>, Ambiguous> {
        // RFC 9110 §9.3.7: `OPTIONS *` asks about the server as a whole.
        if !self.paths || (asked.path == "*" && asked.method == "OPTIONS") {
            return Ok(None);
        }
        normalise(asked.path).map(Some)
    }
}

impl Bucket {
    fn add(&mut self, number: u32, path: &Path) {
        if !matches!(path, Path::Any) {
            self.first_path = self.first_path.min(number);
        }
        match path {
            Path::Any => self.everywhere.push(number),
            Path::Regex => self.regexes.push(number),
            Path::Templates(list) => {
                for template in list {
                    if let Some(slot) = self.paths.place(template, number) {
                        slot.push(number);
                    }
                }
            }
        }
    }
}

impl Search<'_, '_> {
    /// Lowers what is best to the first of `bucket` that matches.
    fn through(&mut self, bucket: &Bucket) {
        self.first_path = self.first_path.min(bucket.first_path);
        let mut best = self.best;
        self.lower(&bucket.everywhere, &mut best);
        if let Some(path) = self.path {
            bucket
                .paths
                .lower(path, &mut best, &|list, best| self.lower(list, best));
            for &number in bucket.regexes.iter().take_while(|n| **n < best) {
                // The expression last: it costs the most.
                if let Some(wanted) = self.get(number)
                    && wanted.fits(self.asked)
                    && wanted
                        .regex
                        .as_ref()
                        .is_some_and(|regex| regex.is_match(path.as_bytes()))
                {
                    best = number;
                    break;
                }
            }
        }
        self.best = best;
    }

    /// Lowers `best` to the first of `list` that matches beside host and path.
    fn lower(&self, list: &[u32], best: &mut u32) {
        let fits = |number: u32| self.get(number).is_some_and(|wanted| wanted.fits(self.asked));
        if let Some(&number) = list.iter().take_while(|n| **n < *best).find(|n| fits(**n)) {
            *best = number;
        }
    }

    fn get(&self, number: u32) -> Option<&Compiled> {
        usize::try_from(number).ok().and_then(|i| self.matches.get(i))
    }
}
