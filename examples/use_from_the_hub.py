"""Use a pushed model with `transformers` alone: python use_from_the_hub.py USER/NAME (or a model folder)."""

import sys

from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

if len(sys.argv) != 2:
    sys.exit("usage: python use_from_the_hub.py USER/NAME")
name = sys.argv[1]

# The repository holds the model's code next to its weights. trust_remote_code=True allows it to run.
nli = pipeline("text-classification", name, trust_remote_code=True, top_k=None)
for premise, hypothesis in (
    ("A man is sleeping in a park.", "A person is outside."),
    ("A man is sleeping in a park.", "A man is running a marathon."),
):
    print(premise, "|", hypothesis)
    for prediction in nli({"text": premise, "text_pair": hypothesis}):
        print(f"  {prediction['label']:15}{prediction['score']:.3f}")

# The same without a pipeline.
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
inputs = tokenizer("A man is sleeping in a park.", "A person is outside.", return_tensors="pt")
print(model.config.id2label[model(**inputs).logits.argmax().item()])
