"""The web page of `bert-snli serve`, and the same page as a Hugging Face Space."""
