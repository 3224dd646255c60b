//! Reads what scripts answer.
//!
//! Owns the mapping from replies to the seam's types. A reply of another shape is an error that
//! says so, never a guess: it means that somebody else wrote to our keys.

use std::time::{Duration, SystemTime};

use ::redis::Value;
use bytes::Bytes;

use crate::store::{
    Claim, ClaimAnswer, ClaimKind, ClaimState, Fence, LockAnswer, LockState, StoreError, StoreFault,
};

pub(super) fn strange(what: &str, value: &Value) -> StoreError {
    let kind = match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::Array(_) => "a list of another shape",
        _ => "something else",
    };
    StoreError::new(
        StoreFault::Other,
        format!("cannot {what}: Redis answered {kind}; look who else writes keys of this prefix"),
    )
}

/// A list of exactly `N`.
pub(super) fn array<const N: usize>(what: &str, value: Value) -> Result<[Value; N], StoreError> {
    match value {
        Value::Array(values) => {
            values.try_into().map_err(|values| strange(what, &Value::Array(values)))
        }
        other => Err(strange(what, &other)),
    }
}

/// 1 or 0.
pub(super) fn truth(what: &str, value: Value) -> Result<bool, StoreError> {
    Ok(number(what, &value)? != 0)
}

/// What became of a claim's end; `None`: its record is gone.
pub(super) fn ended(what: &str, value: Value) -> Result<Option<bool>, StoreError> {
    let answer = number(what, &value)?;
    Ok((answer != 2).then_some(answer != 0))
}

/// A number, or digits.
pub(super) fn number(what: &str, value: &Value) -> Result<u64, StoreError> {
    let read = match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        value => text(value).and_then(|text| text.parse().ok()),
    };
    read.ok_or_else(|| strange(what, value))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// The word that a list begins with, and what belongs to it.
fn said(value: &Value) -> Option<(&str, &[Value])> {
    let Value::Array(values) = value else { return None };
    let (word, rest) = values.split_first()?;
    Some((text(word)?, rest))
}

fn count(what: &str, value: &Value) -> Result<u32, StoreError> {
    Ok(u32::try_from(number(what, value)?).unwrap_or(u32::MAX))
}

fn milliseconds(what: &str, value: &Value) -> Result<Duration, StoreError> {
    Ok(Duration::from_millis(number(what, value)?))
}

/// `attempts`: those that were asked with.
pub(super) fn claim(value: Value, attempts: u32) -> Result<ClaimAnswer, StoreError> {
    const WHAT: &str = "claim a message id";
    if let Value::Int(_) = value {
        let fence = Fence(number(WHAT, &value)?);
        let (kind, takeovers) = (ClaimKind::Fresh, 0);
        return Ok(ClaimAnswer::Granted(Claim { kind, attempts, takeovers, fence }));
    }
    let Some((said, rest)) = said(&value) else { return Err(strange(WHAT, &value)) };
    let answer = match (said, rest) {
        (kind @ ("fresh" | "taken"), [attempts, takeovers, fence]) => {
            let kind = if kind == "taken" { ClaimKind::TakenOver } else { ClaimKind::Fresh };
            ClaimAnswer::Granted(Claim {
                kind,
                attempts: count(WHAT, attempts)?,
                takeovers: count(WHAT, takeovers)?,
                fence: Fence(number(WHAT, fence)?),
            })
        }
        ("done", [Value::BulkString(result)]) => {
            ClaimAnswer::Done(Some(Bytes::copy_from_slice(result)))
        }
        // A list that ends in nothing may come without its end.
        ("done", [] | [Value::Nil]) => ClaimAnswer::Done(None),
        ("dead", [reason]) => ClaimAnswer::Dead(text(reason).unwrap_or_default().into()),
        ("running", [remaining]) => {
            ClaimAnswer::Running { remaining: milliseconds(WHAT, remaining)? }
        }
        ("waiting", [remaining]) => {
            ClaimAnswer::Waiting { remaining: milliseconds(WHAT, remaining)? }
        }
        ("superseded", []) => ClaimAnswer::Superseded,
        ("mismatch", []) => ClaimAnswer::Mismatch,
        _ => return Err(strange(WHAT, &value)),
    };
    Ok(answer)
}

pub(super) fn lock(value: Value) -> Result<LockAnswer, StoreError> {
    const WHAT: &str = "acquire a lock";
    if let Value::Int(_) = value {
        return Ok(LockAnswer::Held(Fence(number(WHAT, &value)?)));
    }
    match said(&value) {
        Some(("busy", [remaining, ahead])) => Ok(LockAnswer::Busy {
            remaining: milliseconds(WHAT, remaining)?,
            ahead: count(WHAT, ahead)?,
        }),
        _ => Err(strange(WHAT, &value)),
    }
}

pub(super) fn lock_state(value: Value) -> Result<Option<LockState>, StoreError> {
    const WHAT: &str = "inspect a lock";
    if value == Value::Nil {
        return Ok(None);
    }
    let [held, holder, since, until, fence, waiting] = array(WHAT, value)?;
    let time = |value| Ok(SystemTime::UNIX_EPOCH + milliseconds(WHAT, value)?);
    Ok(Some(LockState {
        holder: truth(WHAT, held)?.then(|| text(&holder).unwrap_or_default().to_owned()),
        since: time(&since)?,
        until: time(&until)?,
        fence: Fence(number(WHAT, &fence)?),
        waiting: count(WHAT, &waiting)?,
    }))
}

pub(super) fn claim_state(value: Value) -> Result<Option<ClaimState>, StoreError> {
    const WHAT: &str = "look at a claim";
    let [state, attempts, generation, holder, remaining] = array(WHAT, value)?;
    let state = match number(WHAT, &state)? {
        0 => return Ok(None),
        1 => "running",
        2 => "failed",
        3 => "done",
        4 => "dead",
        _ => return Err(strange(WHAT, &state)),
    };
    Ok(Some(ClaimState {
        state,
        attempts: count(WHAT, &attempts)?,
        generation: count(WHAT, &generation)?,
        holder: text(&holder).unwrap_or_default().to_owned(),
        remaining: milliseconds(WHAT, &remaining)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_another_shape_is_an_error_and_no_guess() {
        let word = |word: &str| Value::BulkString(word.into());
        for values in [vec![], vec![Value::Nil], vec![word("busy")], vec![word("fresh"); 4]] {
            let claimed = claim(Value::Array(values.clone()), 0).expect_err("no claim's answer");
            let locked = lock(Value::Array(values)).expect_err("no lock's answer");
            assert_eq!([claimed.fault, locked.fault], [StoreFault::Other; 2]);
        }
        assert_eq!(claim(Value::Array(vec![word("done")]), 0).ok(), Some(ClaimAnswer::Done(None)));
    }
}
