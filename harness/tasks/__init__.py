"""Tasks: prompts built to a length with the model's own tokenizer, and scores of the answers.

names: all tasks and groups. registry: the task of a name, as protocol describes it. ruler, longbench: the benchmarks.
sample, cache: prompts in memory and on disk. tokens, chat_template, checks: from text to token ids, and what a prompt must
satisfy. haystack, files: prose and data files. documents: long texts for perplexity.
"""
