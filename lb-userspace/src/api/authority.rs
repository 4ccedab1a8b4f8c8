//! Who may change things. Reading is a matter of the socket's file mode; writing also of the user
//! that the kernel vouches for (`SO_PEERCRED`, unix(7)).

use tokio::net::unix::UCred;

/// The process at the other end of a connection, when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// The kernel may not know one, as for a peer in another pid namespace.
    pub pid: Option<i32>,
}

impl Peer {
    /// Root, and the user the agent runs as.
    pub fn may_write(&self, own_uid: u32) -> bool {
        self.uid == 0 || self.uid == own_uid
    }

    /// The user's name, or `uid N`. Reads `/etc/passwd` only: a name service that is slow or down
    /// must not hold up the agent.
    pub fn name(&self) -> String {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        user_name(&passwd, self.uid).unwrap_or_else(|| format!("uid {}", self.uid))
    }
}

impl From<UCred> for Peer {
    fn from(cred: UCred) -> Self {
        Self { uid: cred.uid(), pid: cred.pid() }
    }
}

/// passwd(5): `name:password:uid:...`.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number: u32 = fields.nth(1)?.parse().ok()?;
        (number == uid && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_agents_own_user_may_write() {
        let may = |uid, own| Peer { uid, pid: None }.may_write(own);
        assert!(may(0, 0) && may(0, 900) && may(900, 900));
        assert!(!may(1000, 0) && !may(1000, 900));
    }

    #[test]
    fn a_user_is_named_by_passwd_or_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken line\nanna:x:1000:1000::/home/anna:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("anna"));
        assert_eq!(user_name(passwd, 1001), None);
    }
}
