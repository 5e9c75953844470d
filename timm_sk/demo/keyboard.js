// Gradio 6 treats Tab in a dropdown as a letter, and the list stays open over what is below it.
() => {
    document.addEventListener('keydown', (event) => {
        if (event.key === 'Tab' && event.target.role === 'combobox') {
            event.stopImmediatePropagation();
            event.target.blur();
        }
    }, true);
}
