//! What follows from probes: health, roles, the agents' words.

use super::{
    Core, HealthState, Notice, Now, ProbeKey, ProbeOutcome, Role, election::RoleState, service::Member, suspicion,
};
use crate::config::WantedRole;

impl Core {
    /// Takes a result in, for every backend that wanted to know it.
    pub(super) fn probed(&mut self, key: &ProbeKey, outcome: &ProbeOutcome, now: Now) {
        for me in self.indexes.probes.concerned(key) {
            let Some(service) = self.services.get_mut(&me) else { continue };
            let Some(config) = &service.config else { continue };
            let (name, has_roles) = (config.name.clone(), config.role.is_some());
            let (fall, rise) = (config.health.fall, config.health.rise);
            let passive = config.passive;
            let mut answered = Vec::new();
            for member in &mut service.members {
                let mut texts = Vec::new();
                let address = member.address;
                let notice = |text| Notice { service: name.clone(), backend: Some(address), text };
                if member.probes.agent.as_ref() == Some(key) {
                    texts.extend(outcome.agent.as_ref().and_then(|reply| member.agent.record(reply)));
                    // The last replica that its agent takes out may make room for the primary.
                    self.elections.extend((has_roles && !texts.is_empty()).then_some(me));
                }
                if member.probes.health.as_ref() == Some(key) {
                    texts.extend(member.health.record(outcome, fall, rise, now));
                    let (text, over) = suspicion::judge(member, outcome.up, rise, &passive, now);
                    texts.extend(text);
                    if over {
                        let wanted = suspicion::member_probes(member, config);
                        self.indexes.set_probes(me, member, wanted);
                    }
                    if has_roles {
                        texts.extend(record_role(member, outcome, rise, now));
                        self.elections.insert(me);
                        answered.push(member.address);
                    }
                    let elsewhere = elsewhere(member, outcome);
                    self.notices.extend(elsewhere.map(notice));
                    member.last_probe = Some(outcome.clone());
                    member.last_good = if outcome.up { Some(now) } else { member.last_good };
                    let expiring = expiry(member, outcome);
                    self.notices.extend(expiring.map(notice));
                }
                for text in texts {
                    self.notices.push(notice(text));
                    self.dirty.insert(me);
                }
            }
            answered.into_iter().for_each(|address| service.judge_lag(address, now));
        }
    }

    /// Decides anew who may take new flows, where that may have changed.
    pub(super) fn hold_elections(&mut self) {
        for me in std::mem::take(&mut self.elections) {
            let Some(service) = self.services.get_mut(&me) else { continue };
            let elected =
                |members: &[Member]| members.iter().map(|m| (m.elected, m.demoted)).collect::<Vec<(bool, bool)>>();
            let before = elected(&service.members);
            let texts = service.elect();
            if elected(&service.members) != before {
                self.dirty.insert(me);
            }
            let name = service.name().to_owned();
            self.notices.extend(texts.into_iter().map(|text| Notice { service: name.clone(), backend: None, text }));
        }
    }

    /// After a restart those that new flows went to have the role that they had it for, until they
    /// say otherwise: so new flows go on meanwhile. A table with several backends is not one of a
    /// single primary.
    pub(super) fn inherit_roles(&mut self) {
        for (me, service) in &mut self.services {
            let Some(policy) = service.config.as_ref().and_then(|config| config.role.as_ref()) else { continue };
            let slots = service.table.map_or(&[][..], |table| self.ledger.slots(&table));
            let role = match policy.role {
                WantedRole::Replica => Role::Replica,
                WantedRole::Primary
                    if slots
                        .iter()
                        .all(|slot| slots.first().is_some_and(|first| first.current() == slot.current())) =>
                {
                    Role::Primary
                }
                WantedRole::Primary => continue,
            };
            for member in service.members.iter_mut().filter(|member| member.leaving.is_none()) {
                let used =
                    member.place.as_ref().is_some_and(|place| slots.iter().any(|slot| slot.current() == place.id));
                if used && member.health.state == HealthState::Up {
                    member.role = RoleState::inherited(role);
                }
            }
            self.elections.insert(*me);
        }
    }
}

fn record_role(member: &mut Member, outcome: &ProbeOutcome, rise: u32, now: Now) -> Option<String> {
    if member.health.state == HealthState::Down && !outcome.up {
        return member.role.forget("health down");
    }
    // While it is coming back its claims count already: health and role need as many answers.
    match &outcome.role {
        Some(report) => member.role.record(report, rise, now),
        None => {
            member.role.unanswered();
            None
        }
    }
}

/// That probes do not go where they should, told when it begins, when the reason changes and when it ends.
fn elsewhere(member: &Member, outcome: &ProbeOutcome) -> Option<String> {
    let before = member.last_probe.as_ref().and_then(|before| before.own_address.as_ref());
    match (&outcome.own_address, before) {
        (Some(why), before) if before != Some(why) => {
            Some(format!("its checks go to its own address, not to the service's: {why}"))
        }
        (None, Some(_)) => Some("its checks go to the service's address again".to_owned()),
        _ => None,
    }
}

/// A certificate's end, told once for each day that it comes nearer.
fn expiry(member: &mut Member, outcome: &ProbeOutcome) -> Option<String> {
    let certificate = outcome.certificate.as_ref()?;
    let days = certificate.warn.then_some(certificate.days_left);
    if days == std::mem::replace(&mut member.days_told, days) {
        return None;
    }
    days.map(|days| match days {
        ..0 => format!("its certificate is over since {} days", -days),
        0 => "its certificate ends within a day".to_owned(),
        days => format!("its certificate ends in {days} days"),
    })
}
