/* A conversation in JSON, as `template` and `batch` take it. */
#ifndef MESSAGES_H
#define MESSAGES_H

#include "cli.h"

typedef struct message_list {
    tsk_message *items; /* texts are the JSON document's, or in `joined` */
    size_t count;
    char **joined;      /* [count] a content that came in parts; NULL where it is one string */
} message_list;

/* An array of {"role", "content"}; a content is a string or an array of {"type": "text", "text"}, whose texts follow
   one another with nothing between them. Parts of other types (images, sound) are refused by name. `name`: what the
   array is called in messages. The list is to be freed in any case, before the document. */
int messages_read(message_list *out, const char *name, const tsk_json_value *array);
void messages_free(message_list *list);

#endif
