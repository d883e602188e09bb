"""Models that somebody else runs, behind an OpenAI-compatible or a Gemini image API."""
