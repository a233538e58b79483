"""The BERTs of *Dive into Deep Learning* (d2l.ai, section 15.7) in the Hugging Face ecosystem."""
