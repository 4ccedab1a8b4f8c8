//! For tests of configuration files.

use lb_userspace::config::{Config, parse};

/// What a file comes to that is accepted without a warning.
pub fn accepted(text: &str) -> Config {
    match parse("lb.toml", text) {
        Ok(loaded) => {
            assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            loaded.config
        }
        Err(error) => panic!("refused:\n{error}"),
    }
}
