"""OpenAI-compatible HTTP: schema and replies (types), scheduler (no HTTP), app (Starlette)."""
