"""The miniature base model of lorarar, its judges, example LoRAs and tables; `lorarar.shipped` finds them."""
