"""The papers: masking, losses, the teacher, and the step that joins them."""
