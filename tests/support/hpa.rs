//! What a HorizontalPodAutoscaler computes, as Kubernetes documents it: the desired number from a
//! metric's sum and its `averageValue`, the tolerance, the stabilisation windows, and the policies
//! that limit a change. Times are seconds of its own clock.

use serde_json::Value;

/// A ratio this near to 1 changes nothing: the controller's default.
const TOLERANCE: f64 = 0.1;

/// How it may change in one direction.
#[derive(Debug)]
struct Rules {
    window: f64,
    /// Whether it is in percent, how much, in how many seconds.
    policies: Vec<(bool, f64, f64)>,
    /// `selectPolicy: Min`: the smallest change that a policy allows, not the largest.
    least: bool,
}

impl Rules {
    fn new(rules: &Value, window: f64, otherwise: &[(bool, f64, f64)]) -> Self {
        let window = rules["stabilizationWindowSeconds"].as_f64().unwrap_or(window);
        let policies = rules["policies"].as_array().map(|policies| {
            let policy = |policy: &Value| {
                let percent = policy["type"] == "Percent";
                let number = |key: &str| policy[key].as_f64().unwrap();
                (percent, number("value"), number("periodSeconds"))
            };
            policies.iter().map(policy).collect()
        });
        let policies = policies.unwrap_or_else(|| otherwise.to_vec());
        Self { window, policies, least: rules["selectPolicy"] == "Min" }
    }
}

/// One autoscaler and what it remembers.
#[derive(Debug)]
pub struct Hpa {
    pub min: u32,
    pub max: u32,
    /// Of which sum each is to have `target`.
    pub metric: String,
    pub target: f64,
    up: Rules,
    down: Rules,
    recommended: Vec<(f64, u32)>,
    /// Changes of the number: when, from what, to what.
    changed: Vec<(f64, u32, u32)>,
}

impl Hpa {
    /// As a manifest of `autoscaling/v2` has it.
    pub fn new(manifest: &Value) -> Self {
        let spec = &manifest["spec"];
        let number = |key: &str| spec[key].as_u64().unwrap() as u32;
        let [metric] = &spec["metrics"].as_array().unwrap()[..] else { panic!("not one metric") };
        assert_eq!(metric["type"], "External");
        let (metric, target) = (&metric["external"]["metric"], &metric["external"]["target"]);
        assert_eq!(target["type"], "AverageValue");
        Self {
            min: number("minReplicas"),
            max: number("maxReplicas"),
            metric: metric["name"].as_str().unwrap().to_owned(),
            target: target["averageValue"].as_str().unwrap().parse().unwrap(),
            up: Rules::new(
                &spec["behavior"]["scaleUp"],
                0.0,
                &[(false, 4.0, 15.0), (true, 100.0, 15.0)],
            ),
            down: Rules::new(&spec["behavior"]["scaleDown"], 300.0, &[(true, 100.0, 15.0)]),
            recommended: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// How many there are to be, `now` that there are `current` and the metric's sum is this; `None`:
    /// it is not known, and nothing is changed.
    pub fn decide(&mut self, now: f64, current: u32, sum: Option<f64>) -> u32 {
        let Some(sum) = sum else { return current };
        let ratio = sum / (self.target * f64::from(current));
        let wanted = match (ratio - 1.0).abs() <= TOLERANCE {
            true => current,
            false => (sum / self.target).ceil() as u32,
        };
        let stable = self.stable(now, current, wanted);
        let to = self.limited(now, current, stable).clamp(self.min, self.max);
        if to != current {
            self.changed.push((now, current, to));
        }
        to
    }

    /// The number nearest to the current one that was recommended within the window.
    fn stable(&mut self, now: f64, current: u32, wanted: u32) -> u32 {
        self.recommended.push((now, wanted));
        let within = |window: f64| {
            self.recommended.iter().filter(move |(at, _)| now - at <= window).map(|(_, it)| *it)
        };
        let up = within(self.up.window).min().unwrap_or(wanted);
        let down = within(self.down.window).max().unwrap_or(wanted);
        current.max(up).min(down)
    }

    /// As far as the policies let it change at once.
    fn limited(&self, now: f64, current: u32, to: u32) -> u32 {
        let (rules, grows) = if to > current { (&self.up, true) } else { (&self.down, false) };
        let limits = rules.policies.iter().map(|(percent, value, period)| {
            let moved: i64 = self
                .changed
                .iter()
                .filter(|(at, from, to)| now - at < *period && (to > from) == grows)
                .map(|(_, from, to)| i64::from(*to) - i64::from(*from))
                .sum();
            let start = (i64::from(current) - moved) as f64;
            let by = if *percent { start * value / 100.0 } else { *value };
            (if grows { (start + by).ceil() } else { (start - by).floor().max(0.0) }) as u32
        });
        let furthest = grows != rules.least;
        let limit = if furthest { limits.max() } else { limits.min() };
        let limit = limit.unwrap_or(to);
        if grows { to.min(limit.max(current)) } else { to.max(limit.min(current)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hpa(behavior: Value) -> Hpa {
        Hpa::new(&serde_json::json!({ "spec": {
            "minReplicas": 1, "maxReplicas": 10, "behavior": behavior,
            "metrics": [{ "type": "External", "external": {
                "metric": { "name": "lag" },
                "target": { "type": "AverageValue", "averageValue": "1000" } } }] } }))
    }

    #[test]
    fn it_is_the_documented_formula() {
        let mut hpa = hpa(Value::Null);
        assert_eq!(hpa.decide(0.0, 1, None), 1);
        assert_eq!(hpa.decide(15.0, 1, Some(1099.0)), 1, "within the tolerance");
        assert_eq!(hpa.decide(30.0, 1, Some(1101.0)), 2);
        assert_eq!(hpa.decide(45.0, 2, Some(90_000.0)), 6, "four at once, or twice as many");
        assert_eq!(hpa.decide(50.0, 6, Some(90_000.0)), 6, "not sooner than after 15 s");
        assert_eq!(hpa.decide(60.0, 6, Some(90_000.0)), 10);
        assert_eq!(hpa.decide(75.0, 10, Some(0.0)), 10, "the window of 300 s");
        assert_eq!(hpa.decide(361.0, 10, Some(0.0)), 1);
    }

    #[test]
    fn policies_and_windows_are_kept() {
        let mut hpa = hpa(serde_json::json!({
            "scaleUp": { "stabilizationWindowSeconds": 30, "selectPolicy": "Min", "policies": [
                { "type": "Percent", "value": 100, "periodSeconds": 15 },
                { "type": "Pods", "value": 4, "periodSeconds": 15 }] },
            "scaleDown": { "stabilizationWindowSeconds": 60, "policies": [
                { "type": "Pods", "value": 1, "periodSeconds": 60 }] } }));
        assert_eq!(hpa.decide(0.0, 1, Some(0.0)), 1);
        assert_eq!(hpa.decide(15.0, 1, Some(9000.0)), 1, "not wanted for 30 s yet");
        assert_eq!(hpa.decide(46.0, 1, Some(9000.0)), 2, "the smaller step");
        assert_eq!(hpa.decide(105.0, 2, Some(0.0)), 2, "more were wanted a minute ago");
        assert_eq!(hpa.decide(107.0, 2, Some(0.0)), 1);
    }
}
