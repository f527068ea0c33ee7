"""What the dense model is asked. The held-out list shares no form and no topic with the others."""

from __future__ import annotations

import random

SYSTEM = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n"
)
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"

TOPICS = """rain|volcanoes|the moon|photosynthesis|bicycles|bread|coffee|whales|elephants|democracy
the Roman Empire|the printing press|steam engines|electric cars|batteries|solar panels|passwords
computers|Python lists|sorting a list|recursion|databases|open source software|time management
writing a good email|job interviews|public speaking|learning a language|reading more books
healthy breakfasts|running|sleep|stress|friendship|tomatoes|house plants|cats|dogs|vitamins
the human heart|vaccines|gravity|atoms|black holes|the water cycle|earthquakes|climate change
recycling|saving money|compound interest|inflation|fractions|prime numbers|triangles|percentages
probability|football|painting|photography|jazz music|the violin|poetry|museums|camping
travel on a budget|Paris|Japan|the Sahara desert|rivers|trains|bridges|clocks|glass|paper
chocolate|ants|penguins|dinosaurs|the Great Wall of China|Shakespeare|ancient Egypt|vikings
the French Revolution|telephones|radio|satellites|robots|artificial intelligence|video games
maps|the compass|the stock market|taxes|insurance|small businesses|marketing|teamwork|leadership
homework|note taking|memory|meditation|yoga|swimming|basketball|tennis|cycling to work|soup
pasta|cheese|rice|apples|salt|sugar|water|forests|oceans|mountains|islands|snow|wind|lightning
seasons|the sun|Mars|comets|light|sound|magnets|electricity|plastic|steel|diamonds|bacteria
viruses|DNA|cells|evolution|skin|teeth|bones|eyes|sheep|horses|owls|butterflies|spiders|sharks
movies|theatre|dancing|drawing|guitars|opera|novels|comics|newspapers|libraries|schools
parents|neighbours|weddings|birthdays|holidays|gifts|shoes|hats|furniture|kitchens|cleaning
moving to a new city|cooking for one|a first job|a lost key|a long journey|an old house
a surprising discovery|loops in programming|strings|functions|testing software|linear equations
averages|square roots|geometry|logic puzzles|adjectives|commas|verbs|synonyms|metaphors"""

FORMS = """Explain {} in simple words.|What are three interesting facts about {}?
Write a short story about {}.|Write a short poem about {}.|Give me a list of five tips about {}.
Why is it useful to know about {}?|Write a short email to a friend about {}.
What are the advantages and disadvantages of {}?|Summarize the history of {} in one paragraph.
Write three quiz questions about {} with answers.|I am a beginner. What should I know about {}?
How would you explain {} to a five year old child?|Describe {} in two sentences.
What is the most common misunderstanding about {}?|Write a small Python function related to {}.
Invent a dialogue between a teacher and a student about {}.|Tell me about {}.
What should I do first if I want to learn about {}?|Compare {} with something similar.
Write a short paragraph about {} in a friendly tone.|How does {} affect daily life?
Can you give me an example that has to do with {}?|Make a short plan for a lesson on {}.
Who should care about {}, and why?|List some words that have to do with {}."""

HELD_OUT = """Why do leaves change their color in autumn?
What is the capital of Italy, and what is it famous for?
How do I boil an egg?
My flight was cancelled. Write a polite message to the airline asking for a refund.
What is the difference between a frog and a toad?
Write a birthday wish for my grandmother.
How can I stop my bread dough from sticking to my hands?
Which came first, the telescope or the microscope?
Give me three ideas for a rainy afternoon with two children.
Rewrite this sentence so that it is more formal: "Hey, can you send me that thing?"
What does a lawyer do all day?
Write a limerick with a parrot in it.
What is 15 plus 27, and how did you get the answer?
Name five countries in South America.
How do airplanes stay in the air?
I cannot decide between tea and juice. Help me choose.
What makes honey bees so important for farms?
Write an advertisement for a second-hand piano.
Explain what a search engine is doing when I type something.
How long should I study for a math exam?
Write a short speech thanking my colleagues on my last day.
What is a healthy lunch that I can prepare in ten minutes?
Give me a few reasons to visit Norway.
What happens to my body when I drink too much coffee at night?
Describe a quiet village in the evening.
How can I make my garden attractive for birds?
Who was Leonardo da Vinci?
Write a function in JavaScript that reverses a string.
What are the rules of hide and seek?
Turn these notes into a sentence: meeting, Monday, ten o'clock, bring laptop.
Is a whale a fish?
Write a fairy tale that begins with a broken lantern."""


def _words(text: str) -> list[str]:
    return [word for line in text.split("\n") for word in line.split("|")]


def asked() -> list[str]:
    """Return every form filled with every topic, shuffled with a fixed seed."""
    questions = [form.format(topic) for topic in _words(TOPICS) for form in _words(FORMS)]
    random.Random(7).shuffle(questions)
    return questions


def held_out() -> list[str]:
    """Return the questions kept for judging."""
    return HELD_OUT.split("\n")


def chat(question: str) -> str:
    """Return the question in the model's chat format, ready for the answer."""
    return SYSTEM + question + ANSWER
