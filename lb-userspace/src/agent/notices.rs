//! What happened lately: told to the log at once, and kept for `lb status`.

use std::collections::VecDeque;

use super::clock::timestamp;
use crate::{api::model::NoticeView, core::Notice};

/// Notices that are kept.
const KEPT: usize = 200;

#[derive(Clone, Debug, Default)]
pub struct Notices {
    kept: VecDeque<NoticeView>,
}

impl Notices {
    /// A decision of the core.
    pub fn decision(&mut self, notice: &Notice) {
        let Notice { service, backend, text } = notice;
        tracing::info!(%service, backend = backend.map(tracing::field::display), "{text}");
        self.keep("info", Some(service.clone()), *backend, text.clone());
    }

    /// Something an operator should look at.
    pub fn warning(&mut self, text: String) {
        tracing::warn!("{text}");
        self.keep("warning", None, None, text);
    }

    /// The same, where it stands in the log already.
    pub fn logged_warning(&mut self, text: String) {
        self.keep("warning", None, None, text);
    }

    /// Something the agent did.
    pub fn info(&mut self, text: String) {
        tracing::info!("{text}");
        self.keep("info", None, None, text);
    }

    /// Oldest first.
    pub fn views(&self) -> Vec<NoticeView> {
        self.kept.iter().cloned().collect()
    }

    fn keep(&mut self, level: &str, service: Option<String>, backend: Option<std::net::SocketAddr>, text: String) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(NoticeView { at: timestamp(), level: level.to_owned(), service, backend, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_are_kept() {
        let mut notices = Notices::default();
        for i in 0..KEPT + 3 {
            notices.info(i.to_string());
        }
        let views = notices.views();
        assert_eq!((views.len(), views[0].text.as_str()), (KEPT, "3"));
    }
}
