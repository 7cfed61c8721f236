"""What goes into a run and what comes out: prompt sets (`prompts`) and videos on disk (`video`)."""
