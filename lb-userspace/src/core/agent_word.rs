//! What a backend's own agent says: how much it can take, and whether it wants flows at all.

use super::report::{AgentAdmin, AgentReply};

/// The agent's word so far. An agent that cannot be reached changes nothing: whether the backend
/// lives is the health check's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentWord {
    percent: u16,
    admin: AgentAdmin,
    /// Why the backend is down.
    down: Option<String>,
    heard: bool,
}

impl Default for AgentWord {
    fn default() -> Self {
        Self { percent: 100, admin: AgentAdmin::Ready, down: None, heard: false }
    }
}

impl AgentWord {
    /// Takes an answer in. Returns the new word when it has changed.
    pub(super) fn record(&mut self, reply: &AgentReply) -> Option<String> {
        let before = (self.percent, self.admin, self.down.clone());
        self.heard = true;
        self.percent = reply.percent.unwrap_or(self.percent);
        self.admin = reply.admin.unwrap_or(self.admin);
        if let Some(state) = &reply.state {
            self.down = state.clone().err();
        }
        let changed = before != (self.percent, self.admin, self.down.clone());
        changed.then(|| format!("agent: {}", self.words()))
    }

    /// Why it wants no flows; `None`: it does.
    pub(super) fn refuses(&self) -> Option<String> {
        match (&self.down, self.admin) {
            (Some(reason), _) if reason.is_empty() => Some("down by its agent".to_owned()),
            (Some(reason), _) => Some(format!("down by its agent ({reason})")),
            (None, AgentAdmin::Drain) => Some("drain by its agent".to_owned()),
            (None, AgentAdmin::Maintenance) => Some("maintenance by its agent".to_owned()),
            (None, AgentAdmin::Ready) => None,
        }
    }

    /// The agent's share of a weight; more than nothing stays more than nothing.
    pub(super) fn share(&self, weight: u16) -> u16 {
        let share = (u32::from(weight) * u32::from(self.percent)).div_ceil(100);
        u16::try_from(share).unwrap_or(u16::MAX)
    }

    /// `None`: it was not heard yet.
    pub(super) fn shown(&self) -> Option<String> {
        self.heard.then(|| self.words())
    }

    fn words(&self) -> String {
        self.refuses().unwrap_or_else(|| format!("ready, {} % of its weight", self.percent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_leaves_out_stays_as_it_was() {
        let mut word = AgentWord::default();
        assert_eq!(
            word.record(&AgentReply { percent: Some(50), ..AgentReply::default() }).as_deref(),
            Some("agent: ready, 50 % of its weight")
        );
        assert!(word.record(&AgentReply { admin: Some(AgentAdmin::Drain), ..AgentReply::default() }).is_some());
        assert_eq!((word.share(9), word.refuses().as_deref()), (5, Some("drain by its agent")));
        assert_eq!(word.record(&AgentReply::default()), None, "nothing was said");
        assert!(word.record(&AgentReply { admin: Some(AgentAdmin::Ready), ..AgentReply::default() }).is_some());
        assert_eq!(word.refuses(), None);
    }

    #[test]
    fn down_lasts_until_the_agent_says_up() {
        let mut word = AgentWord::default();
        word.record(&AgentReply { state: Some(Err("disk full".to_owned())), ..AgentReply::default() });
        word.record(&AgentReply { admin: Some(AgentAdmin::Ready), ..AgentReply::default() });
        assert_eq!(word.refuses().as_deref(), Some("down by its agent (disk full)"));
        word.record(&AgentReply { state: Some(Ok(())), ..AgentReply::default() });
        assert_eq!(word.refuses(), None);
    }

    #[test]
    fn a_share_of_a_weight_is_nothing_only_at_zero_percent() {
        let share = |percent, weight| AgentWord { percent, ..AgentWord::default() }.share(weight);
        assert_eq!((share(1, 1), share(0, 1000), share(256, 1000), share(50, 0)), (1, 0, 2560, 0));
    }
}
