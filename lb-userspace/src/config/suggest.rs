//! "Did you mean".

/// The one of `words` that was probably meant, written differently: another case, `_` for `-`, a
/// few wrong letters, or its initials (`rr` for `round-robin`).
pub(super) fn closest<'a>(given: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Beyond this length nothing is a slip of the finger, and comparing takes long.
    if given.is_empty() || given.len() > 64 {
        return None;
    }
    let given = given.to_lowercase().replace(['_', ' '], "-");
    let mut best: Option<(usize, &str)> = None;
    for word in words {
        let distance = if initials(word) == given { 0 } else { strsim::damerau_levenshtein(&given, word) };
        let tolerated = (word.len().max(given.len()) / 3).clamp(1, 4);
        if distance <= tolerated && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, word));
        }
    }
    best.map(|(_, word)| word)
}

/// `did you mean ...?`, where something comes close.
pub(super) fn did_you_mean<'a>(given: &str, words: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(given, words).map(|word| format!("did you mean `{word}`?"))
}

/// Initials of a word of several parts, otherwise empty.
fn initials(word: &str) -> String {
    if word.contains('-') { word.split('-').filter_map(|part| part.chars().next()).collect() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::closest;

    const WORDS: [&str; 6] = ["round-robin", "weighted-round-robin", "interval", "fall", "tcp", "udp"];

    #[test]
    fn slips_cases_underscores_and_initials_are_recognised() {
        for (given, meant) in [
            ("round_robin", "round-robin"),
            ("Round Robin", "round-robin"),
            ("rr", "round-robin"),
            ("wrr", "weighted-round-robin"),
            ("inteval", "interval"),
            ("itnerval", "interval"),
            ("fal", "fall"),
            ("TCP", "tcp"),
            ("upd", "udp"),
        ] {
            assert_eq!(closest(given, WORDS), Some(meant), "{given}");
        }
    }

    #[test]
    fn far_fetched_words_are_not_suggested() {
        for given in ["", "x", "hello", "icmp6", &"round-robin".repeat(10)] {
            assert_eq!(closest(given, WORDS), None, "{given}");
        }
    }
}
