//! Counters in a mapped region, histograms, Prometheus text.
