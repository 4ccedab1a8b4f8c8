//! What operators decided at run time, over the configuration file: who, when, why and until when.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::Admin;

/// What operators decided; persisted apart from the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorLayer {
    /// About backends: by service name, then backend address.
    pub services: BTreeMap<String, BTreeMap<SocketAddr, Override>>,
    /// Services that are not in the file, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub added_services: BTreeMap<String, AddedService>,
    /// Services of the file that do not run, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed_services: BTreeMap<String, Mark>,
}

/// A service that an operator added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedService {
    /// Its `[[service]]` table, as it would stand in the file.
    pub toml: String,
    pub mark: Mark,
}

/// One backend's part of the operator's layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Override {
    /// The backend is not in the file: the operator added it, with this tier.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub added_tier: Option<u8>,
    /// The backend is in the file: the operator removed it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub removed: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub admin: Option<Admin>,
    /// Its drain had a time, which is over.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub drain_over: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<u16>,
    /// Of each of these that is set.
    #[serde(default)]
    pub marks: BTreeMap<Aspect, Mark>,
}

/// What a decision about a backend is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    Added,
    Removed,
    Admin,
    Weight,
}

/// Whose decision it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Who: a user name or `uid N`.
    pub by: String,
    /// When: RFC 3339, UTC, whole seconds.
    pub at: String,
    /// Why, in the operator's words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// When it ends by itself: as `at`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// Of a drain: when flows that are left get what the service's policy says. As `at`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drain_end: Option<String>,
}

impl Mark {
    /// A decision without a reason or an end.
    pub fn new(by: &str, at: &str) -> Self {
        Self { by: by.to_owned(), at: at.to_owned(), ..Self::default() }
    }

    /// `by anna at 2026-01-01T00:00:00Z, "new kernel", until 2026-01-01T01:00:00Z`.
    pub fn in_words(&self) -> String {
        let reason = self.reason.as_ref().map(|reason| format!(", {reason:?}")).unwrap_or_default();
        let until = self.until.as_ref().map(|until| format!(", until {until}")).unwrap_or_default();
        let drain = self.drain_end.as_ref().map(|end| format!(", flows may go on until {end}")).unwrap_or_default();
        format!("by {} at {}{reason}{until}{drain}", self.by, self.at)
    }

    /// Whether it has ended at `now` (RFC 3339, UTC, whole seconds: texts of this form sort by time).
    fn over(&self, now: &str) -> bool {
        self.until.as_ref().is_some_and(|until| until.as_str() <= now)
    }
}

impl Override {
    /// Whether anything is decided.
    pub fn says_something(&self) -> bool {
        self.removed || self.added_tier.is_some() || self.admin.is_some() || self.weight.is_some()
    }

    /// Whose decision it is that shows: about `admin` where there is one, else the newest.
    pub fn shown(&self) -> Option<&Mark> {
        self.marks.get(&Aspect::Admin).or_else(|| self.marks.values().max_by(|a, b| a.at.cmp(&b.at)))
    }

    /// Takes over what `mark` decided: of what differs from `before` it is the mark.
    pub(super) fn mark(&mut self, before: &Self, mark: &Mark, aspect: Aspect) {
        self.marks.clone_from(&before.marks);
        self.marks.insert(aspect, mark.clone());
        self.tidy();
    }

    /// Marks of what is not decided any more go.
    fn tidy(&mut self) {
        let Self { added_tier, removed, admin, drain_over, weight, marks } = self;
        *drain_over &= *admin == Some(Admin::Drain);
        marks.retain(|aspect, _| match aspect {
            Aspect::Added => added_tier.is_some(),
            Aspect::Removed => *removed,
            Aspect::Admin => admin.is_some(),
            Aspect::Weight => weight.is_some(),
        });
    }

    /// Whether the time of its drain is over since the last call.
    fn end_drain(&mut self, now: &str) -> bool {
        let mark = self.marks.get_mut(&Aspect::Admin);
        let over = mark.and_then(|mark| mark.drain_end.take_if(|end| end.as_str() <= now)).is_some();
        self.drain_over |= over && self.admin == Some(Admin::Drain);
        over
    }

    /// The decision is over.
    fn end(&mut self, aspect: Aspect) {
        match aspect {
            // Whatever else was decided about it was decided about what was added.
            Aspect::Added => *self = Self::default(),
            Aspect::Removed => self.removed = false,
            Aspect::Admin => self.admin = None,
            Aspect::Weight => self.weight = None,
        }
        self.tidy();
    }
}

impl OperatorLayer {
    /// The layer without what has ended at `now` (RFC 3339, UTC, whole seconds), and what that was, in
    /// words; `None`: nothing has.
    pub fn expired(&self, now: &str) -> Option<(Self, Vec<String>)> {
        let mut left = self.clone();
        let mut ended = Vec::new();
        for (service, backends) in &mut left.services {
            for (address, decided) in backends.iter_mut() {
                let over: Vec<(Aspect, Mark)> =
                    decided.marks.iter().filter(|(_, mark)| mark.over(now)).map(|(a, m)| (*a, m.clone())).collect();
                if decided.end_drain(now) {
                    ended.push(format!("{service} {address}: the time of its drain is over"));
                }
                for (aspect, mark) in over {
                    ended.push(format!("{service} {address}: {} has ended ({})", word(aspect), mark.in_words()));
                    decided.end(aspect);
                }
            }
            backends.retain(|_, decided| decided.says_something());
        }
        left.services.retain(|_, backends| !backends.is_empty());
        let (added, removed) = (&mut left.added_services, &mut left.removed_services);
        added.retain(|name, added| {
            let over = added.mark.over(now);
            if over {
                ended.push(format!("{name}: the added service has ended ({})", added.mark.in_words()));
            }
            !over
        });
        removed.retain(|name, mark| {
            let over = mark.over(now);
            if over {
                ended.push(format!("{name}: the removal of the service has ended ({})", mark.in_words()));
            }
            !over
        });
        (!ended.is_empty()).then_some((left, ended))
    }

    /// Whether both have the same services added and removed.
    pub fn same_services(&self, other: &Self) -> bool {
        self.added_services == other.added_services && self.removed_services == other.removed_services
    }

    /// When something ends next: RFC 3339, UTC.
    pub fn next_end(&self) -> Option<&str> {
        let of_backends = self.services.values().flat_map(BTreeMap::values).flat_map(|decided| decided.marks.values());
        let of_services = self.added_services.values().map(|added| &added.mark).chain(self.removed_services.values());
        of_backends
            .chain(of_services)
            .flat_map(|mark| mark.until.iter().chain(&mark.drain_end))
            .map(String::as_str)
            .min()
    }
}

/// `drained` is said of admin states elsewhere: here it is the kind of decision.
fn word(aspect: Aspect) -> &'static str {
    match aspect {
        Aspect::Added => "being added",
        Aspect::Removed => "being removed",
        Aspect::Admin => "the admin state",
        Aspect::Weight => "the weight",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "10.0.0.1:80";

    fn mark(at: &str, until: Option<&str>) -> Mark {
        Mark { until: until.map(str::to_owned), reason: Some("new kernel".to_owned()), ..Mark::new("anna", at) }
    }

    fn layer(decided: Override) -> OperatorLayer {
        let backends = [(A.parse().unwrap(), decided)].into();
        OperatorLayer { services: [("web".to_owned(), backends)].into(), ..OperatorLayer::default() }
    }

    #[test]
    fn only_what_has_ended_goes() {
        let marks = [
            (Aspect::Admin, mark("2026-01-01T00:00:00Z", Some("2026-01-01T00:10:00Z"))),
            (Aspect::Weight, mark("2026-01-01T00:05:00Z", None)),
        ];
        let decided =
            Override { admin: Some(Admin::Drain), weight: Some(7), marks: marks.clone().into(), ..Override::default() };
        let layer = layer(decided.clone());
        assert_eq!(layer.next_end(), Some("2026-01-01T00:10:00Z"));
        assert_eq!(layer.expired("2026-01-01T00:09:59Z"), None);
        let (left, ended) = layer.expired("2026-01-01T00:10:00Z").unwrap();
        assert_eq!(
            ended,
            [
                "web 10.0.0.1:80: the admin state has ended (by anna at 2026-01-01T00:00:00Z, \"new kernel\", until 2026-01-01T00:10:00Z)"
            ]
        );
        let kept = Override { admin: None, marks: [marks[1].clone()].into(), ..decided };
        assert_eq!(left.services["web"][&A.parse().unwrap()], kept);
        assert_eq!(left.next_end(), None);
    }

    #[test]
    fn what_was_decided_about_an_added_backend_ends_with_it() {
        let marks = [
            (Aspect::Added, mark("2026-01-01T00:00:00Z", Some("2026-01-01T00:10:00Z"))),
            (Aspect::Admin, mark("2026-01-01T00:05:00Z", None)),
        ];
        let decided =
            Override { added_tier: Some(0), admin: Some(Admin::Drain), marks: marks.into(), ..Override::default() };
        let (left, _) = layer(decided).expired("2027-01-01T00:00:00Z").unwrap();
        assert_eq!(left, OperatorLayer::default());
    }

    #[test]
    fn a_drain_whose_time_is_over_stays_one_and_says_so() {
        let admin = Mark { drain_end: Some("2026-01-01T00:10:00Z".to_owned()), ..mark("2026-01-01T00:00:00Z", None) };
        let decided =
            Override { admin: Some(Admin::Drain), marks: [(Aspect::Admin, admin)].into(), ..Override::default() };
        let layer = layer(decided);
        assert_eq!(layer.next_end(), Some("2026-01-01T00:10:00Z"));
        assert_eq!(layer.expired("2026-01-01T00:09:59Z"), None);
        let (left, ended) = layer.expired("2026-01-01T00:10:00Z").unwrap();
        let backend = &left.services["web"][&A.parse().unwrap()];
        assert_eq!((backend.admin, backend.drain_over), (Some(Admin::Drain), true));
        assert_eq!((ended.len(), left.next_end(), left.expired("2027-01-01T00:00:00Z")), (1, None, None));
    }

    #[test]
    fn services_end_too() {
        let until = mark("2026-01-01T00:00:00Z", Some("2026-01-01T00:10:00Z"));
        let layer = OperatorLayer {
            added_services: [("x".to_owned(), AddedService { toml: String::new(), mark: until.clone() })].into(),
            removed_services: [("y".to_owned(), until)].into(),
            ..OperatorLayer::default()
        };
        let (left, ended) = layer.expired("2026-01-01T00:10:00Z").unwrap();
        assert_eq!((left, ended.len()), (OperatorLayer::default(), 2));
    }
}
