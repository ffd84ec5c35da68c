"""Before training: lists made, videos checked and transcoded, toy videos."""
