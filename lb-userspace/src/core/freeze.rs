//! Services that are frozen for a moment: what would begin a flow is dropped by the data path, and
//! clients try again. The data path counts the time by itself, so that a freeze ends without an agent.

use std::time::Duration;

use super::{Core, Notice, Now, service::ServiceRef};

/// The longest freeze: longer than clients go on knocking is of no use.
pub const FREEZE_MAX: Duration = Duration::from_secs(60);

/// A frozen service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frozen {
    /// When it is over.
    pub until: Now,
    /// The same by the data path's clock.
    pub tick: u32,
}

impl Core {
    /// Freezes a configured service, or makes it last longer or shorter. `tick` is the end by the data
    /// path's clock.
    pub(super) fn freeze(&mut self, name: &str, lasts: Duration, tick: u32, now: Now) {
        let lasts = lasts.min(FREEZE_MAX);
        let frozen = Frozen { until: now + lasts, tick };
        self.set_frozen(name, Some(frozen), format!("frozen for at most {}", humantime::format_duration(lasts)));
    }

    /// Thaws it, if it is frozen.
    pub(super) fn thaw(&mut self, name: &str) {
        self.set_frozen(name, None, "thawed".to_owned());
    }

    /// Ends what has come to its time.
    pub(super) fn thaw_due(&mut self, now: Now) {
        for (me, _) in self.timers.iter().filter(|(_, at)| **at <= now) {
            let Some(service) = self.services.get_mut(me) else { continue };
            if service.frozen.is_none_or(|frozen| frozen.until > now) {
                continue;
            }
            service.frozen = None;
            self.dirty.insert(*me);
            let text = "thawed: its time is over".to_owned();
            self.notices.push(Notice { service: service.name().to_owned(), backend: None, text });
        }
    }

    fn set_frozen(&mut self, name: &str, frozen: Option<Frozen>, text: String) {
        let Some(me): Option<ServiceRef> = self.names.get(name).copied() else { return };
        let Some(service) = self.services.get_mut(&me) else { return };
        if service.frozen.is_none() && frozen.is_none() {
            return;
        }
        service.frozen = frozen;
        self.dirty.insert(me);
        self.notices.push(Notice { service: name.to_owned(), backend: None, text });
    }
}
