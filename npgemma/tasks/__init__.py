"""What PaliGemma is asked and what it answers: prompts, objects, masks, drawings."""
