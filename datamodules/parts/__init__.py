"""The parts that a `PromptDataModule` holds: where its rows are, its samples, its encoder, the order of its prompts."""
