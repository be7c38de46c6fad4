"""A page to try a model in the browser; the only part that needs gradio."""
