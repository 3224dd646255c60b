//! Which routing keys a binding takes, as topic exchanges of AMQP 0-9-1 match them.
//!
//! Pure. Every exchange of the memory broker is one of topics: a binding without wildcards takes its own key alone, as
//! with a direct exchange.

/// Whether a binding to `pattern` takes `key`: words between dots, `*` for one, `#` for none or more.
pub(super) fn takes(pattern: &str, key: &str) -> bool {
    let key: Vec<&str> = key.split('.').collect();
    // Which beginnings of the key, by their number of words, the pattern has matched so far.
    let mut matched = vec![false; key.len() + 1];
    matched[0] = true;
    for word in pattern.split('.') {
        let before = matched;
        matched = vec![false; key.len() + 1];
        for end in 0..=key.len() {
            matched[end] = match word {
                "#" => before[end] || (end > 0 && matched[end - 1]),
                _ => end > 0 && before[end - 1] && (word == "*" || word == key[end - 1]),
            };
        }
    }
    matched[key.len()]
}

#[cfg(test)]
mod tests {
    use super::takes;

    #[test]
    fn words_and_wildcards_match_as_in_amqp() {
        for (pattern, key, matches) in [
            ("orders.placed", "orders.placed", true),
            ("orders.placed", "orders.paid", false),
            ("orders.*", "orders.placed", true),
            ("orders.*", "orders", false),
            ("orders.*", "orders.placed.eu", false),
            ("*.placed", "orders.placed", true),
            ("orders.#", "orders", true),
            ("orders.#", "orders.placed.eu", true),
            ("#", "", true),
            ("#", "orders.placed", true),
            ("#.eu", "orders.placed.eu", true),
            ("#.eu", "orders.eu.placed", false),
            ("#.placed.#", "orders.placed.eu", true),
            ("*.#.eu", "orders.eu", true),
            ("*.#.eu", "eu", false),
            ("*", "", true),
            ("ord*", "orders", false),
        ] {
            assert_eq!(takes(pattern, key), matches, "{pattern} takes {key}");
        }
    }
}
