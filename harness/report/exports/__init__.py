"""What a study measured, in the formats that others read; `harness.report.exports.table` has one row for each."""
