//! Percentiles of a set of measurements.

/// Measurements in milliseconds, sorted.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<f64>);

impl Spread {
    /// Sorts what was measured.
    #[must_use]
    pub fn new(mut values: Vec<f64>) -> Spread {
        values.retain(|v| v.is_finite());
        values.sort_by(f64::total_cmp);
        Spread(values)
    }

    /// The value that the share `q` (0 to 1) of all measurements does not exceed (nearest rank); NaN when there is none.
    #[must_use]
    pub fn at(&self, q: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        let rank = (q * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The largest; NaN when there is none.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.at(1.0)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The measurements, smallest first.
    #[must_use]
    pub fn sorted(&self) -> &[f64] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let s = Spread::new((1..=100).rev().map(f64::from).collect());
        assert_eq!((s.at(0.5), s.at(0.99), s.max(), s.at(0.0)), (50.0, 99.0, 100.0, 1.0));
        assert!(Spread::default().at(0.5).is_nan());
    }
}
