"""Classify pictures: `python examples/classify.py MODEL.tflite PICTURE...`"""

import sys

from featherfed.models.tflite import Classifier

classifier = Classifier(sys.argv[1])
for picture in sys.argv[2:]:
    name, probability = classifier.classify(picture)[0]
    print(f"{picture}: {name} ({probability:.0%})")
