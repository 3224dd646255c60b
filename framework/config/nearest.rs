//! Which known name a misspelled one may have meant.

/// The known name that is nearest to `wrong`, if one is near enough to be worth naming.
///
/// Near is a third of the letters or less, so that `quue` finds `queue` and `x` finds nothing.
pub(super) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // A typo is short; a pasted document is no typo, and distance costs the product of the lengths.
    if wrong.chars().count() > 64 {
        return None;
    }
    known
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, name)| distance * 3 <= name.chars().count().max(3))
        .min()
        .map(|(_, name)| name)
}

/// Letters to insert, remove, replace or swap with a neighbour (optimal string alignment), case ignored.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.to_lowercase().chars().collect();
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
                    let best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    let swapped = i > 1
                        && j > 1
                        && left[i - 1] == right[j - 2]
                        && left[i - 2] == right[j - 1];
                    if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
                }
            };
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_wrong_missing_added_or_swapped_finds_the_name() {
        let known = ["queue", "in_flight_max", "delay_max", "delay_min"];
        for wrong in ["quue", "queeu", "queuee", "Queue"] {
            assert_eq!(nearest(wrong, known), Some("queue"), "{wrong}");
        }
        assert_eq!(nearest("in_flight_mx", known), Some("in_flight_max"));
        assert_eq!(nearest("delay-max", known), Some("delay_max"));
    }

    #[test]
    fn what_is_far_from_all_finds_nothing() {
        assert_eq!(nearest("prefetch", ["queue", "id", "key"]), None);
        assert_eq!(nearest("x", ["id", "key"]), None);
        assert_eq!(nearest(&"q".repeat(100_000), ["queue"]), None);
    }
}
